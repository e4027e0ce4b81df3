"""Revocable templates: what is done to embeddings, under a key, before a gallery stores and compares them."""

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
# SlerpFace's: how far towards the noise, groups of dimensions, and the share that each of them loses
_SHARE, _GROUPS, _DROPPED = 0.7, 8, 0.25


class TemplateKind(StrEnum):
    """What a gallery keeps of an embedding; chosen when it is made.

    `plain` is the embedding itself. `rotated` is the embedding under a keyed rotation, which keeps cosines: under
    another key, templates are carried over without anyone enrolling again. `slerp` is the rotated embedding after
    SlerpFace (Zhong et al., AAAI 2025), which drops dimensions: nobody gets the embedding back, not with the key
    either, so under another key people must enrol again. SlerpFace alone would not do: what two of its keys make of an
    embedding has a cosine that tells people apart, while the rotation before it leaves nothing to compare.
    """

    PLAIN = "plain"
    ROTATED = "rotated"
    SLERP = "slerp"


class TemplateProtection:
    """Makes templates from embeddings under the keys of a ring, one kind for a whole gallery.

    Keys go by their ids; plain templates have the key "". Raises GalleryError for a kind that is not known, for a ring
    that is absent or not wanted, and for keys that the ring lacks even after its file was read again.
    """

    def __init__(self, kind: TemplateKind | str, size: int, keyring: Keyring | None = None) -> None:
        try:
            self.kind = TemplateKind(kind)
        except ValueError as error:
            raise GalleryError(f"templates {kind!r}; expected {', '.join(TemplateKind)}") from error
        if self.kind is TemplateKind.PLAIN and keyring is not None:
            raise GalleryError("the gallery's templates are plain and have no key; leave the template key away")
        self.size = size
        self.keyring = keyring
        self._maps: dict[str, tuple[KeyedRotation, TemplateKey | None]] = {}
        self._lock = threading.Lock()

    @property
    def exact(self) -> bool:
        """Whether templates keep all that the embedding says, so that they can be carried over to another key."""
        return self.kind is not TemplateKind.SLERP

    @property
    def current(self) -> str:
        """Id of the key that is to be used from now on."""
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
        """Be ready for a key; a key once used stays known when the ring's file has forgotten it."""
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
        # not by a seeded generator of PyTorch's, which can be in 2^32 states only
        secret = self._ring.derive("template noise", key)
        noise = torch.from_numpy(keyed_normal(b"slerp noise" + secret, self.size)).float()
        order = torch.from_numpy(keyed_uniform(b"slerp groups" + secret, self.size).argsort())
        return rotation, TemplateKey.of(noise, order, groups=min(_GROUPS, self.size), dropped=_DROPPED)


__all__ = ["ENVIRONMENT", "TemplateKind", "TemplateProtection"]
