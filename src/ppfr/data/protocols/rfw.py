"""RFW, Racial Faces in-the-Wild: verification pairs of four groups, each with lists of its own.

    RFW/txts/African/African_pairs.txt     NAME 1 2 (one person) or NAME 1 OTHER 3 (two people), by tabs or spaces
    RFW/txts/African/African_lmk.txt       image, label, five points x y; there for the loose crops as published
    RFW/data/African/NAME/NAME_0001.jpg

and so for Asian, Caucasian and Indian (Wang et al., ICCV 2019). `RFW/test/` may hold all that, as in the archive.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ppfr.data.detection.align import align
from ppfr.data.images import FACE_SIZE, Images, in_threads, read_image
from ppfr.data.pairs import PairedImages, pair_up
from ppfr.util.errors import DataError

GROUPS = ("African", "Asian", "Caucasian", "Indian")

# the published images: loose crops of this size, in which a face fills about a third
_LOOSE = 400
_SUFFIXES = (".jpg", ".png", ".jpeg")
_NUMBER = re.compile("[0-9]{1,6}")
_DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]*)?")
_NAME = re.compile(r"[^\s/\\]+")


class Pair(NamedTuple):
    """Two images, each NAME/NAME_0001 without its suffix, and whether they show one person."""

    first: str
    second: str
    same: bool


def is_rfw(folder: Path) -> bool:
    """Whether a folder holds pair lists of RFW."""
    return _base(folder) is not None


def rfw_groups(folder: Path) -> list[str]:
    """Those of `GROUPS` whose pair list is there."""
    base = _base(folder)
    return [] if base is None else [group for group in GROUPS if _list(base, group, "pairs").is_file()]


def _base(folder: Path) -> Path | None:
    bases = (folder, folder / "test")
    return next((base for base in bases if any(_list(base, group, "pairs").is_file() for group in GROUPS)), None)


def _list(base: Path, group: str, kind: str) -> Path:
    return base / "txts" / group / f"{group}_{kind}.txt"


def open_rfw(folder: Path, group: str, *, size: int = FACE_SIZE, strict: bool = False) -> PairedImages:
    """The pairs of one of `GROUPS` with their images, aligned by the list of landmarks where there is one.

    Images of 112 x 112 are taken for aligned. Missing and broken images are left out with their pairs, as in
    `ppfr.data.pairs`. Raises DataError for a list that is not there or has a line that is no pair, for loose crops
    without landmarks, and with `strict` for anything left out.
    """
    base = _base(folder)
    path = _list(folder if base is None else base, group, "pairs")
    pairs = read_rfw_pairs(path)
    landmarks_file = path.with_name(f"{group}_lmk.txt")
    landmarks = read_rfw_landmarks(landmarks_file) if landmarks_file.is_file() else {}
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    images_folder = path.parents[2] / "data" / group

    def read(row: int) -> Images:
        return _crop(images_folder, names[row], landmarks, size)

    images = in_threads(read, range(len(names)))
    row = {name: number for number, name in enumerate(names)}
    rows = [(row[pair.first], row[pair.second]) for pair in pairs]
    return pair_up(path, rows, [pair.same for pair in pairs], names, images, size=size, strict=strict)


def read_rfw_pairs(path: Path) -> list[Pair]:
    """The pairs of a list in its order; raises DataError naming file and line for one that is no pair."""
    pairs = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                pairs.append(_pair(line.split()))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    if not pairs:
        raise DataError(f"{path}: holds no pairs")
    return pairs


def _pair(columns: list[str]) -> Pair:
    if len(columns) == 3:
        name, first, second = columns
        other = name
    elif len(columns) == 4:
        name, first, other, second = columns
    else:
        raise DataError(f"{len(columns)} columns; expected NAME 1 2 or NAME 1 OTHER 3")
    if not (_NUMBER.fullmatch(first) and _NUMBER.fullmatch(second)):
        raise DataError(f"{' '.join(columns)[:80]!r} has no two numbers of images")
    if not (_NAME.fullmatch(name) and _NAME.fullmatch(other)) or ".." in (name, other):
        raise DataError(f"{' '.join(columns)[:80]!r}: a name leads out of the images' folder")
    same = len(columns) == 3
    if (name == other) != same or (same and int(first) == int(second)):
        raise DataError(f"{' '.join(columns)[:80]!r}: expected two images of one person, or of two")
    return Pair(f"{name}/{name}_{int(first):04d}", f"{other}/{other}_{int(second):04d}", same)


def read_rfw_landmarks(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Landmarks (5, 2) by NAME/NAME_0001; raises DataError naming file and line for what is none."""
    landmarks: dict[str, npt.NDArray[np.float64]] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 12 or not all(map(_DECIMAL.fullmatch, columns[2:])):
            raise DataError(f"{path}, line {number}: {line[:80]!r}; expected an image, a label and five points")
        points = np.array([float(value) for value in columns[2:]]).reshape(5, 2)
        parts = columns[0].replace("\\", "/").split("/")
        name = "/".join(parts[-2:]).rpartition(".")[0]
        if not np.array_equal(landmarks.setdefault(name, points), points):
            raise DataError(f"{path}, line {number}: {name} has other points than above")
    return landmarks


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list in UTF-8 ({error})") from error


def _crop(folder: Path, name: str, landmarks: dict[str, npt.NDArray[np.float64]], size: int) -> Images:
    found = [path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    path = found[0] if found else folder / f"{name}{_SUFFIXES[0]}"
    image = read_image(path, None)
    if image.shape[:2] == (FACE_SIZE, FACE_SIZE) or (not landmarks and image.shape[:2] != (_LOOSE, _LOOSE)):
        return image if image.shape[:2] == (size, size) else read_image(path, size)
    if name not in landmarks:
        height, width = image.shape[:2]
        raise DataError(f"{path}: a loose crop of {width} x {height} without landmarks; expected the group's _lmk.txt")
    return align(image, landmarks[name], size)
