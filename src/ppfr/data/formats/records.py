"""Encoded images with their people, before any is decoded: what all formats of training data have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from ppfr.data.faceset import Indices, Skipped
from ppfr.data.formats.recordfiles import Codec, DataFiles, Listed, Texts, integers
from ppfr.data.formats.recordlists import RECORDIO, TFRECORD, list_image_index, list_recordio, list_training_index
from ppfr.data.formats.recordnames import RecordNames, names_path, read_names
from ppfr.data.formats.rowindex import RowIndex, index_path, load_index, save_index, stamps
from ppfr.data.images import decode_image, in_threads
from ppfr.util.errors import DataError
from ppfr.util.progress import progress_callback

RECORD_SUFFIXES = (".txt", ".index", ".rec")
"""Files that stand for a record set: TFace's two indices, and RecordIO."""

_BLOCK = 4096


class Records(ABC):
    """Encoded images in a fixed order.

    `labels` (N,) int64 index `identities`; `names` (N) tell images apart, and are their own if `named`; `skipped` is
    what the source named but could not give. `oblong` (M,) int64 are the rows whose images are not square, or None when
    nothing has decoded the images yet.
    """

    name: str
    identities: Sequence[str]
    labels: Indices
    names: Sequence[str]
    named: bool
    skipped: list[Skipped]
    oblong: Indices | None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def data(self, row: int) -> bytes:
        """The encoded image of a row, from any thread; raises DataError without naming the row."""

    @abstractmethod
    def place(self, row: int) -> str:
        """Where the image of a row is, for people."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the set does, as far as can be told without reading images."""


class FileRecords(Records):
    """Image files, as a folder or a CSV names them."""

    def __init__(self, name: str, paths: Sequence[Path], people: Sequence[str], skipped: Sequence[Skipped]) -> None:
        self.name = name
        self.paths = paths
        self.identities = sorted(set(people))
        position = {person: label for label, person in enumerate(self.identities)}
        self.labels = np.array([position[person] for person in people], np.int64)
        self.names = [str(path) for path in paths]
        self.named = True
        self.oblong = None
        self.skipped = list(skipped)

    def data(self, row: int) -> bytes:
        try:
            return self.paths[row].read_bytes()
        except OSError as error:
            reason = "file not found" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
            raise DataError(reason) from error

    def place(self, row: int) -> str:
        return str(self.paths[row])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row, path in enumerate(self.paths):
            person = self.identities[self.labels[row]]
            digest.update(f"{path.absolute()}\0{person}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class _Places(Sequence[str]):
    """Where the images of a record set are, made up when asked for: for sets whose images have no names."""

    def __init__(self, records: IndexedRecords) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int | slice) -> str | list[str]:  # type: ignore[override]
        rows = range(len(self))[row]
        return self.records.place(rows) if isinstance(rows, int) else [self.records.place(each) for each in rows]


class IndexedRecords(Records):
    """A TFRecord or RecordIO set, by its compiled index, which is made when there is none that fits.

    Raises DataError when the set cannot be read, and when none of its records is good. Every image that is read is
    compared with its checksum in the index.
    """

    def __init__(self, path: Path) -> None:
        where = index_path(path)
        index = load_index(where, path.parent) if path.exists() else None
        if index is None:
            index = build_index(path)
            save_index(where, index, path.parent)
            # mapped, so that other processes share it
            index = load_index(where, path.parent) or index
        self.path = path
        self.index = index
        self._codec = _codec(path)
        self._files = DataFiles(index.files)
        self.name = f"{path.parent.name}/{path.stem}"
        self.identities = index.identities
        self.labels = index.labels
        self.oblong = index.oblong
        self.named = index.names is not None
        self.names = index.names if index.names is not None else _Places(self)
        self.skipped = list(index.skipped)

    def data(self, row: int) -> bytes:
        index = self.index
        record = self._files.read(int(index.shards[row]), int(index.offsets[row]), int(index.sizes[row]))
        image = self._codec.unpack(record).image
        if google_crc32c.value(image) != index.checks[row]:
            raise DataError("the image has changed since the set was first opened")
        return image

    def place(self, row: int) -> str:
        return self._files.place(int(self.index.shards[row]), int(self.index.offsets[row]))

    def fingerprint(self) -> str:
        return hashlib.sha256(
            repr((str(self.path.absolute()), sorted(self.index.stamped.items()))).encode()
        ).hexdigest()


def is_record_set(path: Path) -> bool:
    """Whether a path is the entry of a TFRecord or RecordIO set."""
    return path.suffix.lower() in RECORD_SUFFIXES


def list_records(path: Path) -> Listed:
    """What the index file of a set names; raises DataError when it is none."""
    listing = {".txt": list_training_index, ".index": list_image_index, ".rec": list_recordio}
    return listing[path.suffix.lower()](path)


def _codec(path: Path) -> Codec:
    return RECORDIO if path.suffix.lower() == ".rec" else TFRECORD


# --- the index, made once --------------------------------------------------------------------------------------------


class _Good(NamedTuple):
    """What reading a record tells."""

    size: int
    label: int
    check: int
    square: bool


def build_index(path: Path) -> RowIndex:
    """Read and check every record of a set; raises DataError when none is good.

    A record that is damaged, holds no image, or does not match its line in the names file is left out and told.
    """
    texts = [path.with_suffix(".idx") if path.suffix.lower() == ".rec" else path, names_path(path)]
    stamped = stamps(path.parent, texts)
    listed = list_records(path)
    stamped |= stamps(path.parent, listed.files)
    sidecar = None if path.suffix.lower() == ".index" else read_names(path, len(listed))
    files = DataFiles(listed.files)
    columns = {name: array("q") for name in ("rows", "sizes", "labels", "checks", "oblong")}
    skipped: list[Skipped] = []
    with progress_callback(f"{path.name}: checking") as progress:
        for start in range(0, len(listed), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(listed)))
            for row, found in zip(rows, in_threads(partial(_check, listed, sidecar, files), rows), strict=True):
                if isinstance(found, DataError):
                    skipped.append(_skip(listed, files, row, found))
                    continue
                if not found.square:
                    columns["oblong"].append(len(columns["rows"]))
                for name, value in zip(("rows", "sizes", "labels", "checks"), (row, *found[:3]), strict=True):
                    columns[name].append(value)
            progress(rows.stop, len(listed))
    good = {name: integers(column) for name, column in columns.items()}
    if not len(good["rows"]):
        raise DataError(f"{path}: none of {len(listed)} records can be used; {first_reasons(skipped)}")
    identities, labels = _identities(path, listed, sidecar, good["rows"], good["labels"])
    names = sidecar.names if sidecar else listed.names
    return RowIndex(
        files=listed.files,
        shards=listed.shards[good["rows"]].astype(np.int32),
        offsets=listed.offsets[good["rows"]],
        sizes=good["sizes"].astype(np.uint32),
        labels=labels,
        checks=good["checks"].astype(np.uint32),
        identities=identities,
        names=None if names is None else Texts.of(names[row] for row in good["rows"].tolist()),
        oblong=good["oblong"],
        skipped=skipped,
        stamped=stamped,
    )


def _check(listed: Listed, sidecar: RecordNames | None, files: DataFiles, row: int) -> _Good:
    if row in listed.broken:
        raise DataError(listed.broken[row])
    read, offset = files.reader(int(listed.shards[row])), int(listed.offsets[row])
    size = listed.codec.size(read, offset)
    image, label = listed.codec.unpack(read(offset, size))
    if label is None:
        assert listed.labels is not None
        label = int(listed.labels[row])
    if sidecar is not None:
        sidecar.verify(row, label, image)
    height, width = decode_image(image, None).shape[:2]
    return _Good(size, label, google_crc32c.value(image), height == width)


def _skip(listed: Listed, files: DataFiles, row: int, error: DataError) -> Skipped:
    if row in listed.broken:
        place, _, reason = listed.broken[row].partition(": ")
        return Skipped(place, reason)
    return Skipped(files.place(int(listed.shards[row]), int(listed.offsets[row])), str(error))


def _identities(
    path: Path, listed: Listed, sidecar: RecordNames | None, rows: Indices, labels: Indices
) -> tuple[list[str], Indices]:
    """The identities in the order of their labels, and labels without gaps."""
    found, first, dense = np.unique(labels, return_index=True, return_inverse=True)
    if sidecar is not None:
        people = sidecar.people[rows]
        if not (people == people[first][dense]).all() or len(np.unique(people)) != len(found):
            raise DataError(f"{sidecar.path}: gives a label of {path.name} several identities, or an identity several")
        return [sidecar.identities[person] for person in people[first].tolist()], dense
    if listed.identities is not None:
        return [listed.identities[label] for label in found.tolist()], dense
    # as wide as the largest, so that they sort as the numbers do
    width = len(str(int(found[-1])))
    return [f"{label:0{width}d}" for label in found.tolist()], dense


def first_reasons(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first few of what was skipped, for an error message."""
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    return named + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")
