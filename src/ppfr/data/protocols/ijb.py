"""IJB-B and IJB-C in the layout of InsightFace: loose crops, and lists of landmarks, templates, pairs and galleries.

    IJBB/loose_crop/1.jpg ...
    IJBB/meta/ijbb_name_5pts_score.txt        image, five points x y, the detector's score
    IJBB/meta/ijbb_face_tid_mid.txt           image, template, medium; the same images in the same order
    IJBB/meta/ijbb_template_pair_label.txt    two templates, 1 for one person or 0
    IJBB/meta/ijbb_1N_gallery_S1.csv ...      TEMPLATE_ID, SUBJECT_ID, more; and ijbb_1N_probe_mixed.csv

The lists carry no checksums: a digit that was changed into another, or pairs that are missing at the end, are found
only where lists contradict each other, so every such contradiction is refused.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ppfr.data.detection.align import align
from ppfr.data.faceset import FaceSet, Indices, Skipped
from ppfr.data.images import FACE_SIZE, Images, in_threads, read_image
from ppfr.util.errors import DataError
from ppfr.util.progress import bar, track

IMAGES_FOLDER, LISTS_FOLDER = "loose_crop", "meta"
_CHUNK = 1024


class TemplateSubjects(NamedTuple):
    """Templates (T,) of a gallery or of probes, and the subject (T,) of each."""

    templates: Indices
    subjects: Indices

    def only(self, known: Indices) -> TemplateSubjects:
        """Those whose template is among `known`."""
        kept = np.isin(self.templates, known)
        return TemplateSubjects(self.templates[kept], self.subjects[kept])


@dataclass(frozen=True)
class IjbLists:
    """What the lists say: per image (N), per pair (P), and galleries by name with the probes, if there are any."""

    root: Path
    prefix: str
    names: list[str]
    landmarks: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    templates: Indices
    medias: Indices
    first: Indices
    second: Indices
    same: npt.NDArray[np.bool_]
    galleries: dict[str, TemplateSubjects]
    probes: TemplateSubjects | None


@dataclass(frozen=True)
class IjbTest:
    """The images that can be used, aligned, as `faces`; their `rows` in the lists; what is left of the lists.

    `lost` are the templates that have no usable image: pairs and searches without them remain. `faces` has templates
    for identities.
    """

    lists: IjbLists
    faces: FaceSet
    rows: Indices
    pairs: Indices
    galleries: dict[str, TemplateSubjects]
    probes: TemplateSubjects | None
    lost: list[Skipped]

    @property
    def left_out(self) -> list[Skipped]:
        """Everything that the lists name and no figure counts."""
        return [*self.faces.skipped, *self.lost]


def is_ijb(folder: Path, prefix: str) -> bool:
    """Whether a folder holds the lists of IJB-B (`prefix` "ijbb") or IJB-C ("ijbc")."""
    return (folder / LISTS_FOLDER / f"{prefix}_face_tid_mid.txt").is_file()


# --- lists -----------------------------------------------------------------------------------------------------------


def read_ijb(root: Path, prefix: str) -> IjbLists:
    """Read all lists of a folder; galleries and probes may be missing, then `galleries` is empty.

    Raises DataError naming file and line for anything that is not as `ppfr.data.protocols.ijb` says, for images that
    are listed twice or in another order, and for pairs and galleries of templates without images.
    """
    with bar() as progress:
        progress.add_task(f"{root.name}: reading the lists", total=None, note="")
        return _read_lists(root, prefix)


def _read_lists(root: Path, prefix: str) -> IjbLists:
    meta = root / LISTS_FOLDER
    points = meta / f"{prefix}_name_5pts_score.txt"
    media = meta / f"{prefix}_face_tid_mid.txt"
    names, numbers = _read_images(points, 11, np.float32)
    again, owners = _read_images(media, 2, np.int64)
    if names != again:
        row = next((row for row, pair in enumerate(zip(names, again, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(names)} and {len(again)} images" if row is None else f"line {row + 1} of either"
        raise DataError(f"{points} and {media} differ: {where}; expected the same images in the same order")
    known = np.unique(owners[:, 0])
    first, second, same = _read_pairs(meta / f"{prefix}_template_pair_label.txt", known)
    files = sorted(meta.glob(f"{prefix}_1N_gallery_*.csv"))
    probes = meta / f"{prefix}_1N_probe_mixed.csv"
    searches = bool(files) and probes.is_file()
    return IjbLists(
        root=root,
        prefix=prefix,
        names=names,
        landmarks=numbers[:, :10].reshape(-1, 5, 2),
        scores=numbers[:, 10],
        templates=owners[:, 0],
        medias=owners[:, 1],
        first=first,
        second=second,
        same=same,
        galleries={file.stem.rpartition("_")[2]: _read_subjects(file, known) for file in files} if searches else {},
        probes=_read_subjects(probes, known) if searches else None,
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list in UTF-8 ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _read_images(path: Path, columns: int, dtype: type[np.generic]) -> tuple[list[str], npt.NDArray[Any]]:
    """Image names and the numbers (N, columns) behind them."""
    convert: Callable[[str], Any] = int if np.issubdtype(dtype, np.integer) else float
    plain = re.compile(r"[-+.0-9eE]+")
    seen: dict[str, int] = {}
    rows = []
    for number, line in _lines(path):
        name, *values = line.split()
        pure = PurePosixPath(name)
        if len(values) != columns:
            raise DataError(f"{path}, line {number}: {len(values)} numbers behind {name!r}; expected {columns}")
        if pure.is_absolute() or ".." in pure.parts:
            raise DataError(f"{path}, line {number}: {name!r} leads out of the images' folder")
        if seen.setdefault(name, number) != number:
            raise DataError(f"{path}, line {number}: {name!r} was listed before, in line {seen[name]}")
        try:
            # Python's numbers may have underscores and the digits of any script
            if not all(map(plain.fullmatch, values)):
                raise ValueError(f"{' '.join(values)[:80]!r} are not all numbers")
            rows.append([convert(value) for value in values])
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    try:
        numbers = np.array(rows, dtype).reshape(len(rows), columns)
    except OverflowError as error:
        raise DataError(f"{path}: holds a number beyond 64 bits ({error})") from error
    if not rows or not np.isfinite(numbers).all():
        raise DataError(f"{path}: {'a number is not finite' if rows else 'empty'}; expected images and their numbers")
    return list(seen), numbers


def _read_pairs(path: Path, known: Indices) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    try:
        with warnings.catch_warnings():
            # an empty list is reported below
            warnings.simplefilter("ignore", UserWarning)
            rows = np.loadtxt(path, np.int64, comments=None, ndmin=2, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if rows.shape[1:] != (3,) or not len(rows):
        raise DataError(f"{path}: {rows.shape} numbers; expected lines of two templates and a label")
    first, second, label = np.ascontiguousarray(rows.T)
    wrong = np.flatnonzero((label != 0) & (label != 1))
    if wrong.size:
        raise DataError(f"{path}: pair {wrong[0] + 1} has the label {label[wrong[0]]}; expected 0 or 1")
    for side in (first, second):
        _check_known(path, np.unique(side), known)
    return first, second, label == 1


def _read_subjects(path: Path, known: Indices) -> TemplateSubjects:
    """Templates in rising order with their subjects; a template has a line for each of its images."""
    owner: dict[int, int] = {}
    rows = csv.reader(line for _, line in _lines(path))
    try:
        head = [name.strip().upper() for name in next(rows, [])]
        if not {"TEMPLATE_ID", "SUBJECT_ID"} <= set(head):
            raise DataError(f"{path}: columns {', '.join(head)[:200]!r}; expected TEMPLATE_ID and SUBJECT_ID")
        places = head.index("TEMPLATE_ID"), head.index("SUBJECT_ID")
        for number, row in enumerate(rows, 2):
            ids = [row[place].strip() if place < len(row) else "" for place in places]
            if not all(re.fullmatch("[0-9]{1,18}", text) for text in ids):
                raise DataError(f"{path}, row {number}: {','.join(row)[:80]!r} has no template and subject in numbers")
            template, subject = map(int, ids)
            if owner.setdefault(template, subject) != subject:
                raise DataError(
                    f"{path}, row {number}: template {template} is of subject {subject}, above of {owner[template]}"
                )
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from error
    if not owner:
        raise DataError(f"{path}: no templates")
    templates, subjects = np.array(sorted(owner.items()), np.int64).T
    _check_known(path, templates, known)
    return TemplateSubjects(templates, subjects)


def _check_known(path: Path, templates: Indices, known: Indices) -> None:
    unknown = np.setdiff1d(templates, known, assume_unique=True)
    if unknown.size:
        raise DataError(f"{path}: {unknown.size} templates have no images, among them {unknown[0]}")


# --- images ----------------------------------------------------------------------------------------------------------


def open_ijb(lists: IjbLists, *, size: int = FACE_SIZE, strict: bool = False) -> IjbTest:
    """Look at every image once, and make the set of those that can be decoded and aligned; nothing is kept in memory.

    Missing and broken images are in `faces.skipped`, templates without any left in `lost`. Raises DataError when no
    pair of either kind is left, and with `strict` for anything left out.
    """
    title = lists.root.name
    good: list[int] = []
    skipped: list[Skipped] = []
    blocks = range(0, len(lists.names), _CHUNK)
    for start in track(blocks, f"{title}: looking at {len(lists.names):,} images"):
        rows = range(start, min(start + _CHUNK, len(lists.names)))
        for row, found in zip(rows, in_threads(lambda row: _crop(lists, row, size), rows), strict=True):
            if isinstance(found, DataError):
                skipped.append(Skipped(lists.names[row], str(found)))
                if strict:
                    raise DataError(f"{title}: {found}; refused under strict")
            else:
                good.append(row)
    kept = np.array(good, np.int64)
    templates, labels = np.unique(lists.templates[kept], return_inverse=True)
    pairs = np.flatnonzero(np.isin(lists.first, templates) & np.isin(lists.second, templates))
    truth = lists.same[pairs]
    if truth.all() or not truth.any():
        raise DataError(
            f"{lists.root}: of {len(lists.names)} images {len(good)} can be used, which leaves {int(truth.sum())} "
            f"genuine and {int((~truth).sum())} impostor pairs{'; ' + skipped[0].reason if skipped else ''}"
        )

    def read(indices: Indices) -> Images:
        images = np.empty((len(indices), size, size, 3), np.uint8)
        for place, found in enumerate(in_threads(lambda row: _crop(lists, row, size), kept[indices].tolist())):
            if isinstance(found, DataError):
                raise found
            images[place] = found
        return images

    faces = FaceSet(
        title,
        [str(template) for template in templates.tolist()],
        read,
        names=[lists.names[row] for row in good],
        labels=labels.astype(np.int64),
        size=size,
        skipped=skipped,
    )
    lost = np.setdiff1d(lists.templates, templates)
    return IjbTest(
        lists=lists,
        faces=faces,
        rows=kept,
        pairs=pairs,
        galleries={name: gallery.only(templates) for name, gallery in lists.galleries.items()},
        probes=None if lists.probes is None else lists.probes.only(templates),
        lost=[Skipped(f"template {template}", "no usable image") for template in lost.tolist()],
    )


def _crop(lists: IjbLists, row: int, size: int) -> Images:
    path = lists.root / IMAGES_FOLDER / lists.names[row]
    image = read_image(path, None)
    try:
        return align(image, lists.landmarks[row], size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
