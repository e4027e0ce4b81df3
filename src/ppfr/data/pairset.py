"""Pairs of faces to verify, with the images they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ppfr.data.faceset import Indices, Skipped
from ppfr.data.images import Images
from ppfr.util.errors import DataError


@dataclass(frozen=True)
class PairSet:
    """Pairs of images by index: `first` and `second` (P,) int64 into one set of images, `same` (P,) bool.

    The order matters: 10-fold protocols cut the pairs into contiguous folds. `skipped` names the images that
    could not be used; their pairs are left out. Raises DataError when the three arrays do not belong
    together.
    """

    name: str
    first: Indices
    second: Indices
    same: npt.NDArray[np.bool_]
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.first.shape == self.second.shape == self.same.shape == (len(self.same),):
            shapes = f"{self.first.shape}, {self.second.shape}, {self.same.shape}"
            raise DataError(f"{self.name}: first, second and same have shapes {shapes}; expected (P,) each")

    def __len__(self) -> int:
        return len(self.same)

    def __repr__(self) -> str:
        return f"PairSet({self.name!r}: {int(self.same.sum())} genuine, {int((~self.same).sum())} impostor)"


class PairedImages(NamedTuple):
    """Pairs, and the images (M, size, size, 3) RGB uint8 that their indices mean."""

    pairs: PairSet
    images: Images


def pair_up(
    path: Path,
    rows: Sequence[tuple[int, int]],
    same: Sequence[bool],
    names: Sequence[str],
    images: Sequence[Images | DataError],
    *,
    size: int,
    strict: bool,
) -> PairedImages:
    """Keep the pairs whose two images are good, renumber the images, account for the rest.

    `rows` and `same` are the pairs of the list at `path`, by position in `names` and `images`. Raises DataError when no
    pair is left, and with `strict` for anything left out.
    """
    skipped = [
        Skipped(name, str(image)) for name, image in zip(names, images, strict=True) if isinstance(image, DataError)
    ]
    if strict and skipped:
        raise DataError(f"{path}: {len(skipped)} images refused under strict; {_say(skipped[0])}")
    good = {number: image for number, image in enumerate(images) if not isinstance(image, DataError)}
    place = {number: position for position, number in enumerate(good)}
    kept = [pair for pair, (a, b) in enumerate(rows) if a in place and b in place]
    if not kept:
        reason = f"; {_say(skipped[0])}" if skipped else ""
        raise DataError(f"{path}: none of {len(rows)} pairs can be used{reason}")
    stack = np.empty((len(good), size, size, 3), np.uint8)
    for position, image in enumerate(good.values()):
        stack[position] = image
    pairs = PairSet(
        path.stem,
        np.array([place[rows[pair][0]] for pair in kept], np.int64),
        np.array([place[rows[pair][1]] for pair in kept], np.int64),
        np.array([same[pair] for pair in kept], np.bool_),
        skipped,
    )
    return PairedImages(pairs, stack)


def _say(skipped: Skipped) -> str:
    return skipped.reason if skipped.path in skipped.reason else f"{skipped.path}: {skipped.reason}"
