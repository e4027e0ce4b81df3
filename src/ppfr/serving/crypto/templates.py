"""Cancelable (revocable) templates: keyed transforms of embeddings before a gallery stores and compares them."""

from __future__ import annotations

import threading
from enum import StrEnum

import torch
from torch import Tensor

from ppfr.serving.crypto.rotation import KeyedRotation, keyed_normal, keyed_uniform
from ppfr.transforms.template import TemplateKey, protect_template
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

ENVIRONMENT = "PPFR_TEMPLATE_KEY"
# SlerpFace's: position on the arc towards the noise, groups of dimensions, and the share that each of them drops
_SHARE, _GROUPS, _DROPPED = 0.7, 8, 0.25


class TemplateKind(StrEnum):
    """Template protection of a gallery; chosen when the gallery is made.

    `plain` is the embedding itself. `rotated` is the embedding under a keyed rotation, which keeps cosines: under
    another key, templates are carried over without anyone enrolling again. `slerp` is the rotated embedding after
    SlerpFace (Zhong et al., AAAI 2025), which drops dimensions: the embedding cannot be recovered even with the key, so
    under another key people must enrol again. SlerpFace alone would not be unlinkable: templates of one person under
    two of its keys have a larger cosine than templates of two people; the rotation before it removes this.
    """

    PLAIN = "plain"
    ROTATED = "rotated"
    SLERP = "slerp"


class TemplateProtection:
    """Turns embeddings into templates of one kind, under the keys of a ring.

    Keys go by their ids; plain templates have the key "". Raises GalleryError for a kind that is not known, for a ring
    that is absent or not wanted, and for keys that the ring lacks even after its file was read again.
    """

    def __init__(self, kind: TemplateKind | str, size: int, keyring: Keyring | None = None) -> None:
        try:
            self.kind = TemplateKind(kind)
        except ValueError as error:
            raise GalleryError(f"templates {kind!r}; expected {', '.join(TemplateKind)}") from error
        if self.kind is TemplateKind.PLAIN and keyring is not None:
            raise GalleryError("the gallery's templates are plain and have no key; give no template key")
        self.size = size
        self.keyring = keyring
        self._maps: dict[str, tuple[KeyedRotation, TemplateKey | None]] = {}
        self._lock = threading.Lock()

    @property
    def exact(self) -> bool:
        """Whether templates keep all information of the embedding, so that they can be carried over to another key."""
        return self.kind is not TemplateKind.SLERP

    @property
    def current(self) -> str:
        """Id of the key for new templates."""
        return "" if self.kind is TemplateKind.PLAIN else self._ring.current

    @torch.no_grad()
    def protect(self, embeddings: Tensor, key: str) -> Tensor:
        """Templates (N,D) of embeddings (N,D), under a key."""
        if self.kind is TemplateKind.PLAIN:
            return embeddings
        rotation, noise = self._of(key)
        rotated = rotation(embeddings)
        return rotated if noise is None else protect_template(rotated, noise, _SHARE)

    @torch.no_grad()
    def carry(self, templates: Tensor, old: str, new: str) -> Tensor:
        """Templates (N,D) as they would be under another key, without the embeddings."""
        if old == new:
            return templates
        if not self.exact:
            raise GalleryError(f"{self.kind} templates cannot be carried over to another key: people must enrol again")
        return self._of(new)[0](self._of(old)[0].inverse(templates))

    def learn(self, key: str) -> None:
        """Load a key, which then stays known if it is removed from the ring's file."""
        if self.kind is not TemplateKind.PLAIN:
            self._of(key)

    @property
    def _ring(self) -> Keyring:
        if self.keyring is None:
            raise GalleryError(
                f"the gallery's templates are {self.kind}: give the file with their key, or the key in {ENVIRONMENT}"
            )
        return self.keyring

    def _of(self, key: str) -> tuple[KeyedRotation, TemplateKey | None]:
        with self._lock:
            if key not in self._maps:
                if key not in self._ring.ids:
                    self.keyring = self._ring.again()
                self._maps[key] = self._drawn(key)
            return self._maps[key]

    def _drawn(self, key: str) -> tuple[KeyedRotation, TemplateKey | None]:
        if key not in self._ring.ids:
            raise GalleryError(
                f"templates are under key {key!r}, which is not in the ring of {self._ring.ids}; give the new file of "
                "template keys"
            )
        rotation = KeyedRotation(self._ring.derive("template rotation", key), self.size)
        if self.kind is TemplateKind.ROTATED:
            return rotation, None
        # not from a seeded generator of PyTorch, which has only 2^32 states
        secret = self._ring.derive("template noise", key)
        noise = torch.from_numpy(keyed_normal(b"slerp noise" + secret, self.size)).float()
        order = torch.from_numpy(keyed_uniform(b"slerp groups" + secret, self.size).argsort())
        return rotation, TemplateKey.of(noise, order, groups=min(_GROUPS, self.size), dropped=_DROPPED)


__all__ = ["ENVIRONMENT", "TemplateKind", "TemplateProtection"]
