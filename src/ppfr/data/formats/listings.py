"""Opening a source of faces before any image is decoded: folders, CSV files, Parquet files, record sets."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ppfr.data.faceset import Skipped
from ppfr.data.formats.parquet import SUFFIX as PARQUET
from ppfr.data.formats.parquet import ParquetRecords
from ppfr.data.formats.record_sets.record_set import RecordSet, is_record_set
from ppfr.data.formats.records import FileRecords, Records
from ppfr.data.images import IMAGE_SUFFIXES, Source
from ppfr.util.errors import DataError

_KINDS = "a folder per identity, a .csv or .parquet file, TFRecord (.txt, .index) or RecordIO (.rec)"
_HINTS = {
    ".bin": "; a .bin pair file is for evaluation only",
    ".tfrecord": "; open a TFRecord set by its index, NAME.txt or NAME/NAME.index",
    ".idx": "; open a RecordIO set by its .rec file",
}


class Listing(NamedTuple):
    """The images that a folder or a CSV names, with their identities, and what cannot be used."""

    paths: list[Path]
    people: list[str]
    skipped: list[Skipped]


def open_records(source: Source) -> Records:
    """The encoded images of a folder, CSV, Parquet, TFRecord or RecordIO set; raises DataError for anything else."""
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "train.rec").is_file():
            return RecordSet(path / "train.rec")
        return FileRecords(path.name, *_list_folder(path))
    if not path.exists():
        raise DataError(f"{path}: no such data set; expected {_KINDS}")
    if is_record_set(path):
        return RecordSet(path)
    if path.suffix.lower() == PARQUET:
        return ParquetRecords(path)
    if path.suffix.lower() == ".csv":
        return FileRecords(f"{path.parent.name}/{path.stem}", *_list_csv(path))
    raise DataError(f"{path}: not a data set; expected {_KINDS}{_HINTS.get(path.suffix.lower(), '')}")


def _list_folder(folder: Path) -> Listing:
    if splits := given_splits(folder):
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


def given_splits(path: Path) -> tuple[Path, Path] | None:
    """The training and the test set of a folder that holds both, as `train.csv` and `test.csv` or as folders."""
    for suffix in (".csv", ""):
        parts = path / f"train{suffix}", path / f"test{suffix}"
        if all(part.exists() for part in parts):
            return parts
    return None
