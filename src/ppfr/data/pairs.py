"""Pairs of faces to verify: drawn from a labelled set, read from a list, or from an InsightFace .bin file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppfr.data.faceset import Indices
from ppfr.data.formats.binfile import read_bin
from ppfr.data.formats.listings import read_csv
from ppfr.data.images import FACE_SIZE, Images, Source, decode_image, read_images
from ppfr.data.pairset import PairedImages, PairSet, pair_up
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

PAIR_COLUMNS = ("path_a", "path_b", "same")
# sets up to this many images list all their pairs (two million)
_LISTED_IMAGES = 2000
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def open_pairs(source: Source, *, size: int = FACE_SIZE, strict: bool = False) -> PairedImages:
    """Open a file that brings its own pairs: an InsightFace `.bin`, or a CSV with the columns path_a, path_b, same.

    Raises DataError.
    """
    path = Path(source)
    return (load_bin if path.suffix.lower() == ".bin" else read_pairs)(path, size=size, strict=strict)


# ------------------------------------------------------------------------------------------------ drawing


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


# ------------------------------------------------------------------------------------------------ pair lists


def is_pair_list(path: Path) -> bool:
    """Whether a CSV's first line names the columns of a pair list."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as stream:
        return set(PAIR_COLUMNS) <= {name.strip() for name in next(csv.reader(stream), [])}


def write_pairs(path: Source, pairs: PairSet, names: Sequence[str]) -> None:
    """Write pairs as a CSV `path_a,path_b,same`, paths relative to the CSV; `names` are the images' files."""
    folder = Path(path).absolute().parent
    relative = [os.path.relpath(Path(name).absolute(), folder) for name in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PAIR_COLUMNS)
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        writer.writerow([relative[first], relative[second], int(same)])
    atomic_write(Path(path), text.getvalue())


def read_pairs(path: Source, *, size: int = FACE_SIZE, strict: bool = False) -> PairedImages:
    """Read a CSV `path_a,path_b,same` (paths relative to it; same is 1/0 or true/false) and its images.

    Pairs with an image that cannot be used are left out and the image is listed in `pairs.skipped`. Raises
    DataError for missing columns, a value of `same` that is neither, no usable pair, and with `strict` for
    anything skipped.
    """
    path = Path(path)
    position: dict[str, int] = {}
    same: list[bool] = []
    rows: list[tuple[int, int]] = []
    for line, row in read_csv(path, PAIR_COLUMNS):
        if row["same"].lower() not in _TRUTH:
            raise DataError(f"{path}, line {line}: same is {row['same']!r}; expected 1, 0, true or false")
        rows.append((_number(position, row["path_a"]), _number(position, row["path_b"])))
        same.append(_TRUTH[row["same"].lower()])
    images = read_images([path.parent / name for name in position], size)
    return pair_up(path, rows, same, list(position), images, size=size, strict=strict)


def _number(position: dict[str, int], name: str) -> int:
    return position.setdefault(name, len(position))


def load_bin(path: Source, *, size: int = FACE_SIZE, strict: bool = False) -> PairedImages:
    """Read an InsightFace verification file (`lfw.bin`, `cfp_fp.bin`, ...); nothing in it is run.

    Such a file is a pickle of (2 P encoded images, P truth values), pair i being images 2 i and 2 i + 1; see
    `ppfr.data.formats.binfile` for what it may hold. Broken images are treated as in `read_pairs`. Raises DataError.
    """
    path = Path(path)
    encoded, same = read_bin(path)
    images: list[Images | DataError] = []
    for data in encoded:
        try:
            images.append(decode_image(data, size))
        except DataError as error:
            images.append(error)
    rows = [(2 * pair, 2 * pair + 1) for pair in range(len(same))]
    names = [f"image {number}" for number in range(len(encoded))]
    return pair_up(path, rows, same, names, images, size=size, strict=strict)
