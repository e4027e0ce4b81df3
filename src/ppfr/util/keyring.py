"""A ring of keys for encryption at rest (AES-256-GCM): several generations, one of them current."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ppfr.util.errors import GalleryError
from ppfr.util.files import atomic_write

ENVIRONMENT = "PPFR_GALLERY_KEY"
_KEY, _NONCE = 32, 12


@dataclass(frozen=True)
class Sealed:
    """A ciphertext with its nonce in front, and the id of its key."""

    key_id: str
    data: bytes


class Keyring:
    """Keys by id, of which the `current` one encrypts.

    Every text is bound to a context (associated data) and opens under the same context only, so that rows of a database
    cannot be exchanged. Nonces are random, which is safe for 2^32 texts a key (NIST SP 800-38D, section 8.3).
    """

    def __init__(self, keys: Mapping[str, bytes], current: str, *, file: Path | None = None) -> None:
        wrong = [name for name, key in keys.items() if len(key) != _KEY]
        if wrong or current not in keys:
            raise GalleryError(
                f"keys {wrong} are not of {_KEY} bytes" if wrong else f"the current key {current!r} is not in the ring"
            )
        self._keys = dict(keys)
        self._file = file
        self.current = current

    @classmethod
    def create(cls) -> Keyring:
        """One new key from the operating system's randomness."""
        return cls.of_key(secrets.token_bytes(_KEY))

    @classmethod
    def of_key(cls, key: bytes) -> Keyring:
        """A ring of one key, whose id follows from it."""
        return cls({_key_id(key): key}, _key_id(key))

    @classmethod
    def load(cls, file: Path | str | None = None, variable: str = ENVIRONMENT) -> Keyring:
        """Read a key file, or without one the keys (base64) in an environment variable, PPFR_GALLERY_KEY.

        The variable may hold several keys with commas between them, of which the first one is current. Raises
        GalleryError for a file that others may read, and for a missing or malformed key.
        """
        if file is None:
            text = os.environ.get(variable, "")
            if not text:
                raise GalleryError(
                    f"the gallery needs a key: give a key file (ppfr gallery new-key FILE makes one), or {_KEY} "
                    f"bytes in base64 in the environment variable {variable}"
                )
            listed = [_decoded(part.strip(), variable) for part in text.split(",")]
            return cls({_key_id(key): key for key in listed}, _key_id(listed[0]))
        path = Path(file)
        if not path.is_file():
            raise GalleryError(f"key file {path} does not exist; ppfr gallery new-key {path} makes one")
        if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise GalleryError(f"key file {path} may be read by others; chmod 600 {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            keys = {str(name): _decoded(key, str(path)) for name, key in content["keys"].items()}
            return cls(keys, str(content["current"]), file=path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, GalleryError):
                raise
            raise GalleryError(f"key file {path} is not a key file of ppfr: {error}") from error

    def save(self, file: Path | str) -> None:
        """Write the ring, atomically, for its owner's eyes only (mode 0600)."""
        keys = {name: base64.b64encode(key).decode() for name, key in self._keys.items()}
        atomic_write(Path(file), json.dumps({"current": self.current, "keys": keys}, indent=2) + "\n", mode=0o600)

    @property
    def ids(self) -> list[str]:
        """Ids of all keys, the current one last."""
        return [*(name for name in self._keys if name != self.current), self.current]

    def again(self) -> Keyring:
        """The ring read again from its file; a ring without a file stays as it is. Raises as `load`."""
        return self if self._file is None else Keyring.load(self._file)

    def with_new_key(self) -> Keyring:
        """The same keys and a new one, which becomes current."""
        key = secrets.token_bytes(_KEY)
        return Keyring({**self._keys, _key_id(key): key}, _key_id(key))

    def without_old_keys(self) -> Keyring:
        """The current key alone."""
        return Keyring({self.current: self._keys[self.current]}, self.current)

    def seal(self, text: bytes, context: str) -> Sealed:
        """Encrypt with the current key, bound to a context."""
        nonce = secrets.token_bytes(_NONCE)
        data = AESGCM(self._keys[self.current]).encrypt(nonce, text, context.encode())
        return Sealed(self.current, nonce + data)

    def open(self, sealed: Sealed, context: str) -> bytes:
        """Decrypt; raises GalleryError for an unknown key, for damage, and for a text from another context."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise GalleryError(f"key {sealed.key_id!r} is not in the ring, which holds {self.ids}")
        try:
            return AESGCM(key).decrypt(sealed.data[:_NONCE], sealed.data[_NONCE:], context.encode())
        except (InvalidTag, ValueError) as error:
            raise GalleryError(f"a template does not open: it was damaged, or does not belong to {context}") from error

    def derive(self, purpose: str, key: str | None = None) -> bytes:
        """A key of 32 bytes for another purpose (HKDF-SHA-256, RFC 5869), from the current key or another one."""
        chosen = self._keys[self.current if key is None else key]
        return HKDF(hashes.SHA256(), _KEY, None, f"ppfr {purpose}".encode()).derive(chosen)


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"ppfr gallery key id" + key).hexdigest()[:12]


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise GalleryError(f"{where}: a key is not valid base64") from error
    if len(key) != _KEY:
        raise GalleryError(f"{where}: a key has {len(key)} bytes; expected {_KEY}")
    return key


__all__ = ["ENVIRONMENT", "Keyring", "Sealed"]
