"""Labelled sets of faces: the common form of every source for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ppfr.data.images import FACE_SIZE, Images
from ppfr.util.errors import DataError

Indices = npt.NDArray[np.int64]


class Skipped(NamedTuple):
    """Something a source named that is not in the set."""

    path: str
    reason: str


class FaceSet:
    """Aligned faces with one identity each, in a fixed order.

    `identities` are the names of the people, `labels` (N,) int64 index into them, `names` (N) say which image is which
    (a path, or a synthetic image's number), `skipped` lists what the source named but could not give, and `synthetic`
    says whether any of the images are drawn. `read` maps an int64 index array (n,) to uint8 RGB images (n, size, size,
    3). `people` (N) are the names of each image's person, which are sorted and numbered; with `labels` they are
    the identities, numbered already, and nothing is done for each image, so that millions cost nothing. Raises
    DataError when there is not one person for each image.
    """

    def __init__(
        self,
        name: str,
        people: Sequence[str],
        read: Callable[[Indices], Images],
        *,
        names: Sequence[str],
        labels: Indices | None = None,
        size: int = FACE_SIZE,
        skipped: Iterable[Skipped] = (),
        synthetic: bool = False,
    ) -> None:
        identities = list(people) if labels is not None else sorted(set(people))
        if labels is None:
            position = {person: label for label, person in enumerate(identities)}
            labels = np.array([position[person] for person in people], np.int64)
        if len(labels) != len(names):
            raise DataError(f"{name}: {len(labels)} identities for {len(names)} images; expected one each")
        self.name = name
        self.identities = identities
        self.labels = labels
        self.names = names
        self.size = size
        self.skipped = list(skipped)
        self.synthetic = synthetic
        self._read = read

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
        """The images at `indices` as a set of their own with labels from 0 and nothing in `skipped`."""
        rows = np.asarray(indices, np.int64)
        people, labels = np.unique(self.labels[rows], return_inverse=True)
        return FaceSet(
            name or self.name,
            [self.identities[person] for person in people.tolist()],
            _Subset(self._read, rows),
            names=pick(self.names, rows),
            labels=labels.reshape(-1),
            size=self.size,
            synthetic=self.synthetic,
        )


@dataclass(frozen=True)
class _Subset:
    """Reads the images at `rows` of a set; unlike a lambda it can be pickled."""

    read: Callable[[Indices], Images]
    rows: Indices

    def __call__(self, indices: Indices) -> Images:
        return self.read(self.rows[indices])


def pick(names: Sequence[str], rows: Indices) -> Sequence[str]:
    """Some of many names: a list of a list, else names that are looked up when asked for."""
    return [names[row] for row in rows.tolist()] if isinstance(names, list) else Picked(names, rows)


class Picked(Sequence[str]):
    """Some of many names, looked up when asked for."""

    def __init__(self, names: Sequence[str], rows: Indices) -> None:
        self.names = names
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.names[index] for index in self.rows[row].tolist()]
        return self.names[int(self.rows[row])]
