"""Files that bring pairs with their images: lists in CSV, and InsightFace's .bin."""

from __future__ import annotations

import csv
from pathlib import Path

from ppfr.data.formats.binfile import read_bin
from ppfr.data.formats.listings import read_csv
from ppfr.data.images import FACE_SIZE, Images, Source, decode_image, read_images
from ppfr.data.pairs import PairedImages, pair_up
from ppfr.util.errors import DataError

_COLUMNS = ("path_a", "path_b", "same")
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def open_pairs(source: Source, *, size: int = FACE_SIZE, strict: bool = False) -> PairedImages:
    """Open a file that brings its own pairs: an InsightFace `.bin`, or a CSV with the columns path_a, path_b, same.

    Raises DataError.
    """
    path = Path(source)
    return (load_bin if path.suffix.lower() == ".bin" else read_pairs)(path, size=size, strict=strict)


def is_pair_list(path: Path) -> bool:
    """Whether a CSV's first line names the columns of a pair list."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as stream:
        return set(_COLUMNS) <= {name.strip() for name in next(csv.reader(stream), [])}


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
    for line, row in read_csv(path, _COLUMNS):
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
