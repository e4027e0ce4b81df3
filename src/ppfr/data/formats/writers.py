"""Writing training data: one writer a format, each able to stop anywhere and go on."""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ppfr.data.faceset import Indices
from ppfr.data.formats import recordio, tfrecord
from ppfr.data.formats.recordlists import shard_name
from ppfr.data.formats.recordnames import COLUMNS, SUFFIX, checksum
from ppfr.util.errors import DataError

SHARD_BYTES = 1 << 30
"""A TFRecord file is closed when it holds this much."""

_CONTROL = dict.fromkeys((*range(32), 127), "_")


class Entry(NamedTuple):
    """An image to be written: its name `IDENTITY/FILE`, its identity, its label and its encoded bytes."""

    name: str
    identity: str
    label: int
    image: bytes


class Writer(ABC):
    """Writes a set named by `target` into the folder `work`, from where it is moved when it is whole.

    `sizes` are the lengths that its files had when `sizes()` was last called: what is beyond is cut off, and writing
    goes on from there.
    """

    def __init__(self, work: Path, target: Path, sizes: dict[str, int]) -> None:
        self.work = work
        self.target = target
        self._streams: dict[str, BinaryIO] = {}
        for name, size in sizes.items():
            stream = self._streams[name] = open(work / name, "r+b")  # noqa: SIM115
            stream.truncate(size)
            stream.seek(size)

    @classmethod
    @abstractmethod
    def outputs(cls, target: Path) -> list[str]:
        """Files and folders that the set consists of, beside `target`; the one by which it is opened comes last."""

    @classmethod
    def check(cls, identities: Sequence[str]) -> None:
        """Raise DataError when the format cannot hold these people."""
        if "" in identities:
            raise DataError("an identity has no name; expected one of at least one character")

    @classmethod
    def can_name(cls, file: str) -> bool:
        """Whether an image in this format can have the name of this file."""
        try:
            check_folder(file)
        except DataError:
            return False
        return "/" not in file

    def plan(self, labels: Indices) -> None:  # noqa: B027
        """Prepare for images with these labels, before the first is added; a few of them may not come."""

    @abstractmethod
    def add(self, entry: Entry) -> None:
        """Append an image."""

    def finish(self, labels: Indices) -> None:  # noqa: B027
        """Write what follows the last image; `labels` (n,) are those of all images written."""

    def sizes(self) -> dict[str, int]:
        """Put everything on disk and tell how long the files are."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        return {name: stream.tell() for name, stream in self._streams.items()}

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def _stream(self, name: str, head: bytes = b"") -> BinaryIO:
        """A file to append to, which begins with `head`."""
        if name not in self._streams:
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            self._streams[name] = open(self.work / name, "wb")  # noqa: SIM115
            self._streams[name].write(head)
        return self._streams[name]

    def _add_names(self, entry: Entry) -> None:
        """A line of the names file (see `ppfr.data.formats.recordnames`)."""
        check = checksum(entry.label, entry.identity, entry.name, entry.image)
        stream = self._stream(self.target.stem + SUFFIX, _csv_line(COLUMNS))
        stream.write(_csv_line([entry.name, entry.identity, f"{check:08x}"]))


class FolderWriter(Writer):
    """`TARGET/IDENTITY/FILE`."""

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.name]

    @classmethod
    def check(cls, identities: Sequence[str]) -> None:
        known = set(identities)
        for identity in identities:
            check_folder(identity)
            parts = identity.split("/")
            for end in range(1, len(parts)):
                if (above := "/".join(parts[:end])) in known:
                    raise DataError(
                        f"identity {identity!r} would lie in the folder of identity {above!r}; convert to .csv, .txt "
                        "or .rec, which keep them apart"
                    )

    def add(self, entry: Entry) -> None:
        _write_image(self.work / self.target.name / entry.name, entry.image)


class CsvWriter(Writer):
    """`TARGET.csv` with the columns path and identity, images in `TARGET/IDENTITY/FILE`."""

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.stem, target.name]

    @classmethod
    def check(cls, identities: Sequence[str]) -> None:
        for identity in identities:
            check_folder(identity)
            if not _is_utf8(identity):
                raise DataError(f"identity {identity!r} is not UTF-8, as a CSV has to be; choose a folder or .txt")

    @classmethod
    def can_name(cls, file: str) -> bool:
        return super().can_name(file) and _is_utf8(file)

    def add(self, entry: Entry) -> None:
        path = f"{self.target.stem}/{entry.name}"
        _write_image(self.work / path, entry.image)
        self._stream(self.target.name, _csv_line(["path", "identity"])).write(_csv_line([path, entry.identity]))


class TFRecordWriter(Writer):
    """`TARGET.txt`, and `TARGET/` with TARGET.index and TARGET-00000.tfrecord, ...; names in `TARGET.names.csv`."""

    def __init__(self, work: Path, target: Path, sizes: dict[str, int]) -> None:
        super().__init__(work, target, sizes)
        self._shard = max(0, sum(name.endswith(".tfrecord") for name in sizes) - 1)

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.stem, target.stem + SUFFIX, target.name]

    def add(self, entry: Entry) -> None:
        name = self.target.stem
        if self._records().tell() >= SHARD_BYTES:
            self._shard += 1
        offset = self._records().tell()
        self._records().write(tfrecord.pack_record(entry.image))
        image = entry.name.translate(_CONTROL)
        self._stream(f"{name}/{name}.index").write(_tab_line(image, self._shard, offset))
        self._add_names(entry)
        self._stream(self.target.name).write(_tab_line(name, self._shard, offset, entry.label))

    def _records(self) -> BinaryIO:
        return self._stream(f"{self.target.stem}/{shard_name(self.target.stem, self._shard)}")


class RecordIOWriter(Writer):
    """`TARGET.rec`, `TARGET.idx`; names in `TARGET.names.csv`.

    InsightFace's header and identity records are written where they are possible: when the images of each person follow
    each other, and when the keys are exact as float32, so for up to 16,777,216 records. Else the keys begin with 0.
    """

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.with_suffix(".idx").name, target.stem + SUFFIX, target.name]

    @classmethod
    def check(cls, identities: Sequence[str]) -> None:
        if len(identities) > recordio.LARGEST_LABEL:
            raise DataError(
                f"{len(identities):,} identities; RecordIO's float32 labels are exact up to "
                f"{recordio.LARGEST_LABEL:,}: convert to .txt (TFRecord)"
            )

    def plan(self, labels: Indices) -> None:
        """Decide about the header record, which comes first."""
        runs = 1 + np.count_nonzero(np.diff(labels))
        people = len(np.unique(labels))
        self._header = bool(runs == people and len(labels) + people + 1 <= recordio.LARGEST_LABEL)
        self._next = 0
        index = self.target.with_suffix(".idx").name
        if index in self._streams:
            self._next = (self.work / index).read_bytes().count(b"\n")
        elif self._header:
            self._write((0.0, 0.0), b"", flag=2)

    def add(self, entry: Entry) -> None:
        self._write((float(entry.label),), entry.image)
        self._add_names(entry)

    def finish(self, labels: Indices) -> None:
        if not self._header:
            return
        first = self._next
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(labels)], strict=True):
            self._write((start + 1, end + 1), b"", flag=2)
        stream = self._stream(self.target.name)
        end_of_file = stream.tell()
        stream.seek(0)
        # the same size as the one in its place
        stream.write(recordio.pack_content(recordio.Content(2, (first, self._next), 0, b"")))
        stream.seek(end_of_file)

    def _write(self, labels: tuple[float, ...], image: bytes, *, flag: int = 0) -> None:
        stream = self._stream(self.target.name)
        self._stream(self.target.with_suffix(".idx").name).write(_tab_line(self._next, stream.tell()))
        stream.write(recordio.pack_content(recordio.Content(flag, labels, self._next, image)))
        self._next += 1


def check_folder(identity: str) -> None:
    """Raise DataError unless an identity can be a path of folders, as it is and on every system."""
    for part in identity.split("/"):
        hidden = part.startswith(".")
        too_long = len(os.fsencode(part)) > 255
        if not part or hidden or too_long or part != part.strip() or part != part.translate(_CONTROL) or "\\" in part:
            raise DataError(
                f"identity {identity!r} cannot be the name of a folder; convert to .txt or .rec, which keep any name"
            )


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def file_name(text: str) -> str:
    """A name for a file that is as much like `text` as a name on every system can be."""
    text = os.fsencode(text).decode(errors="replace")
    plain = text.translate(_CONTROL).replace("\\", "_").strip().lstrip(".").strip()
    # room for a number and a suffix
    while len(os.fsencode(plain)) > 200:
        plain = plain[:-1]
    return plain or "_"


def _write_image(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def _tab_line(*fields: object) -> bytes:
    return ("\t".join(map(str, fields)) + "\n").encode(errors="surrogateescape")


def _csv_line(fields: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode(errors="surrogateescape")
