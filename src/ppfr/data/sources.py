"""Labelled sets of aligned faces: folders, CSV files, TFRecord and RecordIO sets, synthetic ones, protocols.

Every image is decoded once before a set is used, so that a broken one is known before training starts and not in the
middle of it: files when the set is opened, records when their index is made. The decoded images stay in memory when
they fit into `CACHE_BYTES`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppfr.data.faceset import FaceSet, Indices, Skipped, pick
from ppfr.data.heterogeneous import ListFile, is_heterogeneous, open_heterogeneous
from ppfr.data.images import FACE_SIZE, IMAGE_SUFFIXES, Images, Source, read_batch
from ppfr.data.records import FileRecords, IndexedRecords, Records, first_reasons, is_record_set
from ppfr.data.synthetic import is_synthetic, open_synthetic
from ppfr.errors import DataError
from ppfr.progress import track

CACHE_BYTES = 1 << 30
"""Decoded images of one set are kept in memory up to this size (1 GiB, 28,500 faces of 112 x 112)."""

TEST_SHARE = 0.2

_BLOCK = 4096  # bounds what is decoded but not yet stored
_KINDS = "a folder per identity, a .csv file, TFRecord (.txt, .index) or RecordIO (.rec)"
_HINTS = {
    ".bin": "; a .bin pair file is for evaluation only",
    ".tfrecord": "; open a TFRecord set by its index, NAME.txt or NAME/NAME.index",
    ".idx": "; open a RecordIO set by its .rec file",
}


class _Reader:
    """Reads the images of a set, which are `rows` of its records (all without), from `cache` where there is one."""

    def __init__(self, records: Records, rows: Indices | None, size: int, cache: Images | None) -> None:
        self.records = records
        self.rows = rows
        self.size = size
        self.cache = cache

    def __call__(self, indices: Indices) -> Images:
        if self.cache is not None:
            return self.cache[indices]
        rows = (indices if self.rows is None else self.rows[indices]).tolist()
        images, failures = read_batch(self.records.data, rows, self.size)
        for position, error in failures.items():
            raise DataError(f"{self.records.place(rows[position])}: {error}") from error
        return images


class Listing(NamedTuple):
    """What a source names before any image is decoded."""

    paths: list[Path]
    people: list[str]
    skipped: list[Skipped]


def open_faces(
    source: Source, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Open one set of aligned faces.

    `source` is

    - a folder with one folder per identity, or with groups of them: `GROUP/IDENTITY/IMAGE.jpg` has the identity
      `GROUP/IDENTITY`;
    - a CSV with the columns `path` (relative to the CSV) and `identity`;
    - TFRecord: `NAME.txt` or `NAME.index` (see `ppfr.data.tfrecord`);
    - RecordIO: `NAME.rec`, or a folder with `train.rec` (see `ppfr.data.recordio`);
    - `"synthetic[:people=200,images=20,seed=0]"`;
    - the training list of a heterogeneous protocol, `"lamp-hq:DIR[,fold=N]"` (see `ppfr.data.heterogeneous`).

    Identities are sorted as strings and numbered from 0, those of record sets in the order of their labels. Images keep
    the order of CSV and records; folders are sorted. Images that are missing, broken or not square are left out and
    listed in `.skipped`, as are identity folders without images; files with other suffixes are ignored. Raises
    DataError when the source cannot be read, when no image is left, and with `strict` for anything skipped.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)[0]
    if is_heterogeneous(source):
        return _open_protocol(str(source), ("train",), size=size, strict=strict, cache_bytes=cache_bytes)[0]
    return load_records(open_records(source), size=size, strict=strict, cache_bytes=cache_bytes)


def open_records(source: Source) -> Records:
    """The encoded images of a folder, a CSV, or a TFRecord or RecordIO set; raises DataError when it is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "train.rec").is_file():
            return IndexedRecords(path / "train.rec")
        return FileRecords(path.name, *_list_folder(path))
    if not path.exists():
        raise DataError(f"{path}: no such data set; expected {_KINDS}")
    if is_record_set(path):
        return IndexedRecords(path)
    if path.suffix.lower() == ".csv":
        return FileRecords(f"{path.parent.name}/{path.stem}", *_list_csv(path))
    raise DataError(f"{path}: not a data set; expected {_KINDS}{_HINTS.get(path.suffix.lower(), '')}")


def _list_folder(folder: Path) -> Listing:
    if splits := _given_splits(folder):
        names = " and ".join(part.name for part in splits)
        raise DataError(f"{folder}: holds two sets, {names}; expected one, as {splits[1]}")
    paths: list[Path] = []
    people: list[str] = []
    skipped: list[Skipped] = []
    for person in _identity_folders(folder):
        found = sorted(file for file in person.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            skipped.append(Skipped(str(person), "identity without images"))
        paths += found
        people += [person.relative_to(folder).as_posix()] * len(found)
    if not paths:
        raise DataError(f"{folder}: holds no images; expected {folder}/IDENTITY/IMAGE.jpg (or .png, .webp, ...)")
    return Listing(paths, people, skipped)


def _identity_folders(folder: Path) -> Iterator[Path]:
    """Folders that hold images, and those that hold nothing; folders of folders only are groups of them."""
    for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        inside = list(entry.iterdir())
        grouped = any(each.is_dir() for each in inside)
        if grouped and not any(each.suffix.lower() in IMAGE_SUFFIXES for each in inside):
            yield from _identity_folders(entry)
        else:
            yield entry


def _list_csv(path: Path) -> Listing:
    paths: list[Path] = []
    people: list[str] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for line, row in read_csv(path, ("path", "identity")):
        name, person = row["path"], row["identity"]
        if not name or not person:
            skipped.append(Skipped(f"{path}, line {line}", f"no {'path' if not name else 'identity'}"))
        elif name in seen:
            skipped.append(Skipped(str(path.parent / name), f"listed again in line {line}"))
        else:
            seen.add(name)
            paths.append(path.parent / name)
            people.append(person)
    if not paths:
        raise DataError(f"{path}: lists no images; expected lines of path,identity below the header")
    return Listing(paths, people, skipped)


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Line number and the named columns of every row, stripped; raises DataError when a column is missing.

    An `optional` column that is missing is empty in every row.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            found = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = found
            if missing := [column for column in columns if column not in found]:
                raise DataError(
                    f"{path}: column {', '.join(missing)} is missing; "
                    f"found {', '.join(found) or 'an empty file'}, "
                    f"expected {', '.join(columns)} in the first line"
                )
            rows: list[tuple[int, dict[str, str]]] = []
            for row in reader:
                rows.append((reader.line_num, {name: (row.get(name) or "").strip() for name in (*columns, *optional)}))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error


def load_listing(
    name: str, listing: Listing, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """The set that a listing names, as `load_records` makes it."""
    records = FileRecords(name, *listing)
    return load_records(records, size=size, strict=strict, cache_bytes=cache_bytes)


def load_records(
    records: Records, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Decode every image once, keep the good ones (in memory when they fit), account for the rest.

    Records whose index was made by decoding them are not decoded again, unless to keep them in memory. Raises
    DataError when no image is left, and with `strict` for anything skipped.
    """
    fits = len(records) * size * size * 3 <= cache_bytes
    cache, rows = None, None
    skipped = list(records.skipped)
    if fits or records.oblong is None:
        rows, cache, broken = _decode_all(records, size, keep=fits)
        skipped += broken
    elif len(records.oblong):
        rows = np.delete(np.arange(len(records)), records.oblong)
        skipped += [
            Skipped(records.place(row), "not square, so not an aligned crop") for row in records.oblong.tolist()
        ]
    if not (len(records) if rows is None else len(rows)):
        raise DataError(f"{records.name}: none of {len(records)} images can be used; {first_reasons(skipped)}")
    # of millions of images nothing is copied where all are good
    if rows is not None and len(rows) == len(records):
        rows = None
    labels = records.labels if rows is None else records.labels[rows]
    shown = np.bincount(labels, minlength=len(records.identities)) > 0
    for person in (~shown).nonzero()[0].tolist():
        skipped.append(Skipped(records.identities[person], "identity without a usable image"))
    if strict and skipped:
        raise DataError(f"{records.name}: {len(skipped)} refused under strict; {first_reasons(skipped)}")
    return FaceSet.labelled(
        records.name,
        [records.identities[person] for person in shown.nonzero()[0].tolist()],
        labels if shown.all() else (np.cumsum(shown) - 1)[labels],
        _Reader(records, rows, size, cache),
        names=records.names if rows is None else pick(records.names, rows),
        size=size,
        skipped=skipped,
    )


def _decode_all(records: Records, size: int, *, keep: bool) -> tuple[Indices, Images | None, list[Skipped]]:
    """The rows that can be used, their images if wanted, and what cannot be used."""
    cache = np.empty((len(records), size, size, 3), np.uint8) if keep else None
    good: list[int] = []
    skipped: list[Skipped] = []
    for start in track(range(0, len(records), _BLOCK), f"{records.name}: reading"):
        rows = range(start, min(start + _BLOCK, len(records)))
        images, failures = read_batch(records.data, rows, size)
        usable = [position for position in range(len(rows)) if position not in failures]
        if cache is not None:
            cache[len(good) : len(good) + len(usable)] = images[usable]
        good += [rows[position] for position in usable]
        skipped += [Skipped(records.place(rows[position]), str(error)) for position, error in failures.items()]
    return np.array(good, np.int64), None if cache is None else cache[: len(good)], skipped


def open_splits(
    source: Source,
    *,
    size: int = FACE_SIZE,
    strict: bool = False,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[FaceSet, FaceSet]:
    """Open a training and a test set that share no person.

    `source` is a folder with `train.csv` and `test.csv`, or with `train/` and `test/` (a folder per identity
    in each); or anything `open_faces` takes, which is then split by people: a fifth of them, drawn with
    `seed`, is the test set. `"synthetic:..."` gives `people` people for training and a quarter as many others
    (at least 20) for testing. A heterogeneous protocol, `"lamp-hq:DIR[,fold=N]"`, gives the training list of a
    fold, its lowest unless named, and gallery and probes together. Raises DataError as `open_faces` does, when an
    identity is in both sets, and for fewer than 4 people to split.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)
    if is_heterogeneous(source):
        train, test = _open_protocol(str(source), ("train", "test"), size=size, strict=strict, cache_bytes=cache_bytes)
    else:
        path = Path(source).expanduser()
        parts = _given_splits(path)
        if parts is None:
            return split_people(open_faces(path, size=size, strict=strict, cache_bytes=cache_bytes), seed=seed)
        train, test = (open_faces(part, size=size, strict=strict, cache_bytes=cache_bytes) for part in parts)
    if both := sorted(set(train.identities) & set(test.identities)):
        raise DataError(
            f"{source}: {len(both)} identities are in both train and test (first: {both[0]}); "
            "expected disjoint people, else the test measures memory. Rename or move them"
        )
    return train, test


def holds_splits(source: Source) -> bool:
    """Whether a source names its training and its test set itself."""
    return is_synthetic(source) or is_heterogeneous(source) or _given_splits(Path(source).expanduser()) is not None


def _open_protocol(source: str, parts: Sequence[str], *, size: int, strict: bool, cache_bytes: int) -> list[FaceSet]:
    """The training images of a protocol's fold, and the gallery and probes of its test."""
    found = open_heterogeneous(source)
    lists = {
        "train": lambda: [found.read("train", found.first)],
        "test": lambda: [found.read("gallery", found.first), found.read("probe", found.first)],
    }
    return [
        load_listing(
            found.set_name(found.first, part),
            list_entries(found.root, lists[part]()),
            size=size,
            strict=strict,
            cache_bytes=cache_bytes,
        )
        for part in parts
    ]


def list_entries(root: Path, files: Sequence[ListFile]) -> Listing:
    """What a protocol's list files name, as files below `root`; an image that several name counts once."""
    entries = {entry.path: entry for file in files for entry in file.entries}
    refused = {line: None for file in files for line in file.refused}
    return Listing([root / path for path in entries], [entry.identity for entry in entries.values()], list(refused))


def _given_splits(path: Path) -> tuple[Path, Path] | None:
    for suffix in (".csv", ""):
        parts = path / f"train{suffix}", path / f"test{suffix}"
        if all(part.exists() for part in parts):
            return parts
    return None


def split_people(faces: FaceSet, *, share: float = TEST_SHARE, seed: int = 0) -> tuple[FaceSet, FaceSet]:
    """Split a set by people into (train, test).

    `share` of the people, at least 2, drawn with `seed`, are for testing; the draw depends on the sorted
    identities and the seed alone. Raises DataError for fewer than 4 people.
    """
    people = len(faces.identities)
    if people < 4:
        raise DataError(f"{faces.name}: {people} people; splitting into train and test needs at least 4")
    chosen = np.random.default_rng(seed).permutation(people)[: max(2, round(share * people))]
    is_test = np.isin(faces.labels, chosen)
    train = faces.subset(np.flatnonzero(~is_test), f"{faces.name} (train)")
    test = faces.subset(np.flatnonzero(is_test), f"{faces.name} (test)")
    train.skipped = list(faces.skipped)
    return train, test
