"""The one shape in which every source of faces reaches training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ppfr.data.images import FACE_SIZE, Images
from ppfr.errors import DataError

Indices = npt.NDArray[np.int64]


class Skipped(NamedTuple):
    """Something a source named that is not in the set."""

    path: str
    reason: str


class FaceSet:
    """Aligned faces with one identity each, in a fixed order.

    `identities` are the sorted names of the people, `labels` (N,) int64 index into them, `names` (N) say
    which image is which (a path, or a synthetic image's number), `skipped` what the source named but could
    not give. `read` maps an int64 index array (n,) to uint8 RGB images (n, size, size, 3).
    """

    def __init__(
        self,
        name: str,
        people: Sequence[str],
        read: Callable[[Indices], Images],
        *,
        names: Sequence[str],
        size: int = FACE_SIZE,
        skipped: Iterable[Skipped] = (),
    ) -> None:
        if len(people) != len(names):
            raise DataError(f"{name}: {len(people)} identities for {len(names)} images; expected one each")
        self.name = name
        self.size = size
        self.names = list(names)
        self.skipped = list(skipped)
        self.identities = sorted(set(people))
        position = {person: label for label, person in enumerate(self.identities)}
        self.labels: Indices = np.array([position[person] for person in people], np.int64)
        self._read: Callable[[Indices], Images] = read

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"FaceSet({self.name!r}: {len(self)} images of {len(self.identities)} people{left_out})"

    def image(self, index: int) -> Images:
        """One image, (size, size, 3) RGB uint8; raises DataError when there is no such index."""
        only: Images = self.images([index])[0]
        return only

    def images(self, indices: npt.ArrayLike | None = None) -> Images:
        """Images (n, size, size, 3) RGB uint8 in the order asked for, all of them without `indices`.

        The result is the caller's own: changing it changes nothing in the set. Raises DataError for an index
        outside 0..N-1, and for a file that has vanished or changed since the set was opened.
        """
        wanted = np.arange(len(self)) if indices is None else np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
            raise DataError(f"{self.name}: indices must be one row of integers, got {wanted.dtype} {wanted.shape}")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            bad = wanted[(wanted < 0) | (wanted >= len(self))][0]
            raise DataError(f"{self.name}: there is no image {bad}; the set has 0..{len(self) - 1}")
        return self._read(wanted.astype(np.int64))

    def subset(self, indices: npt.ArrayLike, name: str | None = None) -> FaceSet:
        """The images at `indices` as a set of their own with labels counted anew and nothing in `skipped`."""
        rows = np.asarray(indices, np.int64)
        return FaceSet(
            name or self.name,
            [self.identities[label] for label in self.labels[rows]],
            lambda wanted: self._read(rows[wanted]),
            names=[self.names[row] for row in rows],
            size=self.size,
        )
