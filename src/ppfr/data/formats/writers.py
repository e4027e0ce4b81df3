"""Writing a set of faces: a folder, one packed Parquet file, or TFRecord with TFace's indices."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ppfr.data.formats import parquet
from ppfr.data.formats.record_sets import tfrecord
from ppfr.data.formats.record_sets.index_files import shard_name
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

SHARD_BYTES = 1 << 30
"""A TFRecord file is closed when it holds this much."""

_CONTROL = dict.fromkeys((*range(32), 127), "_")


class NamedImage(NamedTuple):
    """An image to be written: its name `IDENTITY/FILE`, its identity, its label and its encoded bytes."""

    name: str
    identity: str
    label: int
    image: bytes
    square: bool = True


class Writer(ABC):
    """Writes a set that will be called `target` into an empty folder, `draft`."""

    title: str
    """Name of the format."""

    def __init__(self, draft: Path, target: Path) -> None:
        self.draft = draft
        self.target = target

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

    @abstractmethod
    def add(self, entry: NamedImage) -> None:
        """Append an image."""

    def close(self) -> None:  # noqa: B027
        """Put everything on disk; called when the last image was added, and when writing failed."""


class FolderWriter(Writer):
    """`TARGET/IDENTITY/FILE`."""

    title = "folder"

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
                        f"identity {identity!r} would lie in the folder of identity {above!r}; convert to .parquet, "
                        "which keeps them apart"
                    )

    def add(self, entry: NamedImage) -> None:
        path = self.draft / self.target.name / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.image)


class ParquetWriter(Writer):
    """`TARGET.parquet`, see `ppfr.data.formats.parquet`."""

    title = "Parquet"

    def __init__(self, draft: Path, target: Path) -> None:
        super().__init__(draft, target)
        self._file = parquet.ParquetFile(draft / target.name)

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.name]

    @classmethod
    def check(cls, identities: Sequence[str]) -> None:
        super().check(identities)
        for identity in identities:
            if not _is_utf8(identity):
                raise DataError(f"identity {identity!r} is not UTF-8, as Parquet's strings have to be; choose a folder")

    @classmethod
    def can_name(cls, file: str) -> bool:
        return super().can_name(file) and _is_utf8(file)

    def add(self, entry: NamedImage) -> None:
        self._file.add(entry.name, entry.identity, entry.image, square=entry.square)

    def close(self) -> None:
        self._file.close()


class TFRecordWriter(Writer):
    """`TARGET.txt`, and `TARGET/` with TARGET.index and TARGET-00000.tfrecord, ..., for training with TFace.

    TARGET.txt holds labels only, as TFace has it; the names of images and identities are in TARGET/TARGET.index.
    """

    title = "TFRecord"

    def __init__(self, draft: Path, target: Path) -> None:
        super().__init__(draft, target)
        self._shard = 0
        self._streams: dict[str, BinaryIO] = {}

    @classmethod
    def outputs(cls, target: Path) -> list[str]:
        return [target.stem, target.name]

    def add(self, entry: NamedImage) -> None:
        name = self.target.stem
        if self._records().tell() >= SHARD_BYTES:
            self._shard += 1
        offset = self._records().tell()
        self._records().write(tfrecord.pack_record(entry.image))
        image = entry.name.translate(_CONTROL)
        self._stream(f"{name}/{name}.index").write(_tab_line(image, self._shard, offset))
        self._stream(self.target.name).write(_tab_line(name, self._shard, offset, entry.label))

    def close(self) -> None:
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()

    def _records(self) -> BinaryIO:
        return self._stream(f"{self.target.stem}/{shard_name(self.target.stem, self._shard)}")

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._streams:
            (self.draft / name).parent.mkdir(parents=True, exist_ok=True)
            self._streams[name] = open(self.draft / name, "wb")  # noqa: SIM115
        return self._streams[name]


FORMATS: dict[str, type[Writer]] = {"": FolderWriter, parquet.SUFFIX: ParquetWriter, ".txt": TFRecordWriter}
"""Writer of a format by the suffix of the target."""

_READ_ONLY = (".csv", ".rec", ".idx", ".bin", ".index", ".tfrecord")


def format_suffix(target: Path) -> str:
    """The suffix in `FORMATS` of a set's name, "" for a folder; raises DataError for a format that is only read."""
    suffix = target.suffix.lower()
    if suffix in _READ_ONLY:
        raise DataError(
            f"{target}: {suffix} is not written; expected the name of a set: {target.with_suffix(parquet.SUFFIX)}, "
            f"{target.with_suffix('.txt')} (TFRecord), or a folder"
        )
    return suffix if suffix in FORMATS else ""


class SetDraft:
    """A set that gets its names when all of it is written; until then it lies in the folder `work`.

    `extra` are names beside `target` that belong to it. Raises DataError when one of its names is taken, unless they
    were being given when an earlier run stopped.
    """

    def __init__(self, work: Path, target: Path, kind: type[Writer], extra: Sequence[str] = ()) -> None:
        self.work = work
        self.target = target
        self.kind = kind
        self.folder = work / "draft"
        self._names = [*extra, *kind.outputs(target)]
        self._mark = work / "written"
        self.written = self._mark.exists()
        """Whether the draft is whole, from an earlier run."""
        taken = [name for name in self._names if (target.parent / name).exists()]
        if taken and not self.written:
            raise DataError(f"{target.parent / taken[0]}: exists already; remove it or choose another name")

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """A writer into an empty draft, which is whole when the block ends well."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        writer = self.kind(self.folder, self.target)
        try:
            yield writer
        finally:
            writer.close()
        atomic_write(self._mark, b"")

    def publish(self) -> None:
        """Give everything its name, that by which the set is opened last."""
        for name in self._names:
            if (self.folder / name).exists():
                os.replace(self.folder / name, self.target.parent / name)


def check_folder(identity: str) -> None:
    """Raise DataError unless an identity can be a path of folders, as it is and on every system."""
    for part in identity.split("/"):
        hidden = part.startswith(".")
        too_long = len(os.fsencode(part)) > 255
        if not part or hidden or too_long or part != part.strip() or part != part.translate(_CONTROL) or "\\" in part:
            raise DataError(
                f"identity {identity!r} cannot be the name of a folder; convert to .parquet, which keeps any name"
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


def _tab_line(*fields: object) -> bytes:
    return ("\t".join(map(str, fields)) + "\n").encode(errors="surrogateescape")
