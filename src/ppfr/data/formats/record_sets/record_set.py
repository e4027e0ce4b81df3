"""A TFRecord or RecordIO set, whose records are all read and checked when it is opened."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from ppfr.data.faceset import Indices, Skipped
from ppfr.data.formats.record_sets.files import DataFiles, Listed, integers
from ppfr.data.formats.record_sets.index_files import list_image_index, list_recordio, list_training_index
from ppfr.data.formats.records import Records, files_fingerprint, first_reasons
from ppfr.data.images import decode_image, in_threads
from ppfr.util.errors import DataError
from ppfr.util.progress import progress_callback

RECORD_SUFFIXES = (".txt", ".index", ".rec")
"""Files that stand for a record set: TFace's two indices, and RecordIO."""

_CHUNK = 4096


class _Place(Sequence[str]):
    """Positions of the images of a record set as their names: for sets whose images have none."""

    def __init__(self, records: RecordSet) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int | slice) -> str | list[str]:  # type: ignore[override]
        rows = range(len(self))[row]
        return self.records.place(rows) if isinstance(rows, int) else [self.records.place(each) for each in rows]


class RecordSet(Records):
    """The good records of a set, in the order of its index file.

    Every record is read and its image decoded when the set is opened, and a damaged one is left out and listed in
    `skipped`: convert a large set to Parquet once, which opens without this. An image that is read later is compared
    with its checksum. Raises DataError when the set cannot be read, and when none of its records is good.
    """

    def __init__(self, path: Path) -> None:
        listed = list_records(path)
        self.name = f"{path.parent.name}/{path.stem}"
        self.skipped = []
        self._listed = listed
        self._files = DataFiles(listed.files)
        columns = {name: array("q") for name in ("rows", "sizes", "labels", "checks", "oblong")}
        with progress_callback(f"{path.name}: checking") as progress:
            for start in range(0, len(listed), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(listed)))
                for row, found in zip(rows, in_threads(partial(_check, listed, self._files), rows), strict=True):
                    if isinstance(found, DataError):
                        self.skipped.append(_skip(listed, self._files, row, found))
                        continue
                    if not found.square:
                        columns["oblong"].append(len(columns["rows"]))
                    for name, value in zip(("rows", "sizes", "labels", "checks"), (row, *found[:3]), strict=True):
                        columns[name].append(value)
                progress(rows.stop, len(listed))
        good, self._sizes, labels, self._checks, self.oblong = map(integers, columns.values())
        if not len(good):
            raise DataError(f"{path}: none of {len(listed)} records can be used; {first_reasons(self.skipped)}")
        self.identities, self.labels = _identities(listed, labels)
        self._shards, self._offsets = listed.shards[good], listed.offsets[good]
        self.named = listed.names is not None
        self.names = _Place(self) if listed.names is None else [listed.names[row] for row in good.tolist()]

    def data(self, row: int) -> bytes:
        record = self._files.read(int(self._shards[row]), int(self._offsets[row]), int(self._sizes[row]))
        image = self._listed.codec.unpack(record).image
        if google_crc32c.value(image) != self._checks[row]:
            raise DataError("the image has changed since the set was opened")
        return image

    def place(self, row: int) -> str:
        return self._files.place(int(self._shards[row]), int(self._offsets[row]))

    def fingerprint(self) -> str:
        return files_fingerprint([*self._listed.lists, *self._listed.files])


def is_record_set(path: Path) -> bool:
    """Whether a path is the entry of a TFRecord or RecordIO set."""
    return path.suffix.lower() in RECORD_SUFFIXES


def list_records(path: Path) -> Listed:
    """The records that the index file of a set names; raises DataError when it is none."""
    listing = {".txt": list_training_index, ".index": list_image_index, ".rec": list_recordio}
    return listing[path.suffix.lower()](path)


class _Checked(NamedTuple):
    """A good record: its size, label, the CRC-32C of its image, and whether that is square."""

    size: int
    label: int
    check: int
    square: bool


def _check(listed: Listed, files: DataFiles, row: int) -> _Checked:
    if row in listed.broken:
        raise DataError(listed.broken[row])
    read, offset = files.reader(int(listed.shards[row])), int(listed.offsets[row])
    size = listed.codec.size(read, offset)
    image, label = listed.codec.unpack(read(offset, size))
    if label is None:
        assert listed.labels is not None
        label = int(listed.labels[row])
    height, width = decode_image(image, None).shape[:2]
    return _Checked(size, label, google_crc32c.value(image), height == width)


def _skip(listed: Listed, files: DataFiles, row: int, error: DataError) -> Skipped:
    if row in listed.broken:
        place, _, reason = listed.broken[row].partition(": ")
        return Skipped(place, reason)
    return Skipped(files.place(int(listed.shards[row]), int(listed.offsets[row])), str(error))


def _identities(listed: Listed, labels: Indices) -> tuple[list[str], Indices]:
    """The identities in the order of their labels, and labels without gaps."""
    found, dense = np.unique(labels, return_inverse=True)
    if listed.identities is not None:
        return [listed.identities[label] for label in found.tolist()], dense
    # as wide as the largest, so that they sort as the numbers do
    width = len(str(int(found[-1])))
    return [f"{label:0{width}d}" for label in found.tolist()], dense
