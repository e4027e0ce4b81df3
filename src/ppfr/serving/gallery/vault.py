"""Encryption of stored templates, each bound to its deployment and row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.serving.crypto.templates import TemplateProtection
from ppfr.serving.gallery.database import FACES, setting
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring, Sealed

# names of settings: the key that encrypts, the kind of templates, and the template key
CURRENT, KIND, TEMPLATE_KEY = "key", "templates", "template key"
TEMPLATES = sa.select(FACES.c.id, FACES.c.key_id, FACES.c.template_key, FACES.c.template)


class Vault:
    """Seals embeddings as rows of the table of faces, and opens rows as templates.

    A process compares templates under `key`, the gallery's template key when the process began; what is stored under
    another one is carried over when it is read. Templates that cannot be carried over are under the gallery's last key.
    """

    def __init__(self, keyring: Keyring | None, protection: TemplateProtection, contract: str, key: str) -> None:
        self.protection, self.key = protection, key
        self._keyring = keyring
        self._contract = contract
        if protection.keyring is not None:
            protection.learn(key)

    @property
    def ring(self) -> Keyring:
        """The keys that encrypt."""
        if self._keyring is None:
            raise GalleryError("the gallery was opened without its keys; templates need them")
        return self._keyring

    @ring.setter
    def ring(self, ring: Keyring) -> None:
        self._keyring = ring

    def checked(self, embedding: Tensor) -> Tensor:
        """An embedding (D,) as float32 at unit length; raises GalleryError for another shape or without direction."""
        values = embedding.detach().float().cpu()
        norm = float(values.norm()) if values.ndim == 1 else 0.0
        if values.shape != (self.protection.size,) or not np.isfinite(norm) or norm == 0:
            raise GalleryError(
                f"a template of shape {tuple(embedding.shape)} and length {norm:g}; expected "
                f"({self.protection.size},), finite, not zero"
            )
        return values / norm

    def seal(self, connection: sa.Connection, face: str, embedding: Tensor) -> dict[str, str | bytes]:
        """The columns of a face, under the gallery's current keys."""
        ring, key = self._ring_for_writing(connection), template_key(connection)
        return self._sealed(ring, face, key, _encoded(self.protection.protect(embedding[None], key)[0]))

    def open(self, rows: Sequence[Any]) -> Tensor:
        """Templates (N,D), float32, of rows as `TEMPLATES` selects them."""
        opened = torch.stack([_decoded(self._opened(row)) for row in rows])
        if self.protection.exact:
            for key in {row.template_key for row in rows} - {self.key}:
                those = torch.tensor([row.template_key == key for row in rows])
                opened[those] = self.protection.carry(opened[those], key, self.key)
        return opened

    def reencrypted(self, connection: sa.Connection, row: Any) -> dict[str, str | bytes]:
        """The columns of a row with its template encrypted under the current key."""
        return self._sealed(self._ring_for_writing(connection), row.id, row.template_key, self._opened(row))

    def carried_over(self, connection: sa.Connection, row: Any) -> dict[str, str | bytes]:
        """The columns of a row with its template carried over to the gallery's current template key."""
        key = template_key(connection)
        carried = self.protection.carry(_decoded(self._opened(row))[None], row.template_key, key)[0]
        return self._sealed(self._ring_for_writing(connection), row.id, key, _encoded(carried))

    def _sealed(self, ring: Keyring, face: str, key: str, text: bytes) -> dict[str, str | bytes]:
        sealed = ring.seal(text, self._context(face, key))
        return {"key_id": sealed.key_id, "template_key": key, "template": sealed.data}

    def _opened(self, row: Any) -> bytes:
        if row.key_id not in self.ring.ids:
            # another process may have rotated the keys
            self.ring = self.ring.again()
        return self.ring.open(Sealed(row.key_id, bytes(row.template)), self._context(row.id, row.template_key))

    def _ring_for_writing(self, connection: sa.Connection) -> Keyring:
        """The ring; raises GalleryError if it lacks the key of the last rotation, since older keys may be deleted."""
        current = setting(connection, CURRENT)
        if current is not None and current not in self.ring.ids:
            self.ring = self.ring.again()
            if current not in self.ring.ids:
                raise GalleryError(
                    f"the gallery was rotated to key {current!r}, which is not in the ring of {self.ring.ids}; give "
                    "this server the new key file"
                )
        return self.ring

    def _context(self, face: str, key: str) -> str:
        return f"ppfr template {self._contract} {face} {key}"


def template_key(connection: sa.Connection) -> str:
    """Id of the current template key; "" for plain templates."""
    return setting(connection, TEMPLATE_KEY) or ""


def _encoded(template: Tensor) -> bytes:
    return bytes(F.normalize(template, dim=0).half().numpy().astype("<f2").tobytes())


def _decoded(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype="<f2").astype(np.float32))
