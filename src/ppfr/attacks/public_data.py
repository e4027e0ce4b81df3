"""Data that an attacker may hold: public faces, and payloads with the images behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.attacks.budget import evenly_spaced
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.methods.common.method import check_images
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError, ShapeError


@dataclass(frozen=True)
class PublicFaces:
    """Faces that the attacker may learn from, of other people than those attacked.

    `images` (n,3,H,W) RGB in [-1,1]; `people` (n,) numbers their identities, where known; `labels` are further facts
    about each image by name, (n,) each, such as a soft attribute. Raises AttackError for another number of values.
    """

    images: Tensor
    people: Tensor | None = None
    labels: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, values in {"people": self.people, **(self.labels or {})}.items():
            if values is not None and values.shape != self.images.shape[:1]:
                raise AttackError(
                    f"public faces: {name} has shape {tuple(values.shape)} for {len(self.images)} images; "
                    "expected one value each"
                )

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, faces: PublicFaces | FaceSet | Tensor, most: int) -> PublicFaces:
        """At most `most` of some faces, evenly spaced over the set."""
        if isinstance(faces, FaceSet):
            rows = evenly_spaced(len(faces), most)
            return cls(to_tensor(faces.images(rows)), torch.from_numpy(faces.labels[rows]))
        found = cls(faces) if isinstance(faces, Tensor) else faces
        if len(found) <= most:
            return found
        rows = evenly_spaced(len(found), most)
        return PublicFaces(
            found.images[rows],
            None if found.people is None else found.people[rows],
            {name: values[rows] for name, values in (found.labels or {}).items()},
        )

    def to(self, device: torch.device) -> PublicFaces:
        """The same faces on another device."""
        return PublicFaces(
            self.images.to(device),
            None if self.people is None else self.people.to(device),
            {name: values.to(device) for name, values in (self.labels or {}).items()},
        )

    def check(self, size: tuple[int, int]) -> None:
        """Raise AttackError for faces of another size (H, W), type or range, and for none."""
        try:
            check_images(self.images, size)
        except ShapeError as error:
            raise AttackError(f"public faces: {error}") from error
        if not len(self):
            raise AttackError("there are no public faces in `faces`; give some, or None")


@dataclass(frozen=True)
class Pairs:
    """Payloads, or stored templates, with the images (n,3,H,W) RGB in [-1,1] behind them, row by row.

    Raises AttackError for another number of images.
    """

    payload: Payload
    images: Tensor

    def __post_init__(self) -> None:
        if len(self.payload) != len(self.images):
            raise AttackError(f"pairs: {len(self.payload)} payloads for {len(self.images)} images; expected one each")

    def __len__(self) -> int:
        return len(self.images)
