"""Pairs of faces to verify: drawn from a labelled set, or put together with the images that a list names."""

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

# sets up to this many images list all their pairs (two million)
_LISTED_IMAGES = 2000


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


def draw_pairs(
    labels: npt.ArrayLike, *, genuine: int = 3000, impostor: int = 3000, seed: int = 0, name: str = "pairs"
) -> PairSet:
    """Draw pairs from labelled images, the same ones for the same labels, numbers and seed.

    People count alike, however many photos they have: a genuine pair is two photos of a person drawn uniformly,
    an impostor pair one photo each of two such people, by `numpy.random.default_rng(seed)`. No pair is drawn twice, no
    image is paired with itself. The two kinds are interleaved evenly, so that each of 10 contiguous folds has
    its share of both; people do appear in several folds (as in any random draw: the folds choose a threshold
    and nothing else). Where the set has fewer pairs than asked for, both numbers shrink in proportion, so
    that the mixture stays as asked; the PairSet shows how many there are. Raises DataError when there is no
    pair of a kind that was asked for.
    """
    known = np.asarray(labels)
    if known.ndim != 1 or genuine < 0 or impostor < 0 or genuine + impostor == 0:
        raise DataError(
            f"cannot draw {genuine} genuine and {impostor} impostor pairs from labels {known.shape}; "
            "expected labels (N,) and at least one pair"
        )
    order = np.argsort(known, kind="stable")
    photos = np.unique(known, return_counts=True)[1]
    available = {
        "genuine": int((photos * (photos - 1) // 2).sum()),
        "impostor": int((photos.sum() ** 2 - (photos**2).sum()) // 2),
    }
    share = 1.0
    for kind, wanted in (("genuine", genuine), ("impostor", impostor)):
        if wanted and not available[kind]:
            need = "two images of one person" if kind == "genuine" else "two people"
            raise DataError(f"no {kind} pair among {len(known)} images; expected at least {need}")
        share = min(share, available[kind] / wanted) if wanted else share
    rng = np.random.default_rng(seed)
    drawn = [
        order[_draw(photos, max(1, int(share * wanted)) if wanted else 0, rng, own=own)]
        for wanted, own in ((genuine, True), (impostor, False))
    ]
    both = np.concatenate(drawn, axis=1)
    same = np.arange(both.shape[1]) < drawn[0].shape[1]
    # each kind spread evenly over [0, 1), then merged: contiguous folds get the same mixture
    place = np.concatenate([(np.arange(kind.shape[1]) + 0.5) / max(1, kind.shape[1]) for kind in drawn])
    mixed = np.argsort(place, kind="stable")
    return PairSet(name, both[0][mixed], both[1][mixed], same[mixed])


def _draw(photos: Indices, count: int, rng: np.random.Generator, *, own: bool) -> Indices:
    """Draw `count` different pairs (2, count) of images in the order of their people, who have `photos` (K,) each.

    Pairs that came up before are drawn again, which takes long where nearly all are wanted: small sets list every pair
    and take those of the smallest exponential keys, the same draw in one step (Efraimidis and Spirakis 2006).
    """
    first_photo = np.cumsum(photos) - photos
    if int(photos.sum()) <= _LISTED_IMAGES:
        owner = np.repeat(np.arange(len(photos)), photos)
        first, second = np.triu_indices(len(owner), 1)
        kept = (owner[first] == owner[second]) == own
        first, second = first[kept], second[kept]
        ways = photos * (photos - 1) // 2
        weight = 1 / ways[owner[first]] if own else 1 / (photos[owner[first]] * photos[owner[second]])
        keys = rng.exponential(size=len(first)) / weight
        chosen = np.argsort(keys, kind="stable")[:count]
        return np.stack([first[chosen], second[chosen]]).astype(np.int64)
    seen: dict[tuple[int, int], None] = {}
    able = np.flatnonzero(photos >= 2) if own else np.arange(len(photos))
    while len(seen) < count:
        size = 2 * (count - len(seen))
        person = able[rng.integers(len(able), size=size)]
        other = person if own else able[rng.integers(len(able), size=size)]
        first = first_photo[person] + rng.integers(photos[person])
        second = first_photo[other] + rng.integers(photos[other])
        valid = (first != second) if own else (person != other)
        for pair in zip(
            np.minimum(first, second)[valid].tolist(), np.maximum(first, second)[valid].tolist(), strict=True
        ):
            seen.setdefault(pair)
    pairs = np.array(list(seen)[:count], np.int64).reshape(-1, 2)
    return np.ascontiguousarray(pairs.T)
