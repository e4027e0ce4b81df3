"""What the record formats share: reading pieces of large files, and what an index file names."""

from __future__ import annotations

import itertools
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ppfr.data.faceset import Indices
from ppfr.util.errors import DataError

Read = Callable[[int, int], bytes]
"""`read(offset, size)`: exactly so many bytes of a file, or a DataError."""


class Unpacked(NamedTuple):
    """An encoded image, and its label where the record holds one."""

    image: bytes
    label: int | None


# texts that are unpacked at once
_TEXTS = 1 << 16


class Codec(NamedTuple):
    """How a format finds the size of the record at an offset, and the image in a whole record."""

    size: Callable[[Read, int], int]
    unpack: Callable[[bytes], Unpacked]


class Texts(Sequence[str]):
    """Many strings in two arrays, which a file can hold and every process can map: 10 million cost no time to open.

    `blob` (bytes,) uint8 is all of them in UTF-8, `ends` (N,) int64 says where each ends.
    """

    def __init__(self, blob: npt.NDArray[np.uint8], ends: Indices) -> None:
        self.blob = blob
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack strings; bytes of file names that are no UTF-8 come back as they were."""
        packer = TextPacker()
        for text in texts:
            packer.add(text)
        return packer.texts()

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        # many at once: one by one takes ten times as long
        begin = 0
        for first in range(0, len(self), _TEXTS):
            ends = self.ends[first : first + _TEXTS].tolist()
            blob = self.blob[begin : ends[-1]].tobytes()
            starts = [0, *(end - begin for end in ends)]
            for start, end in itertools.pairwise(starts):
                yield blob[start:end].decode(errors="surrogateescape")
            begin = ends[-1]

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        start = int(self.ends[row - 1]) if row else 0
        return self.blob[start : int(self.ends[row])].tobytes().decode(errors="surrogateescape")


class TextPacker:
    """Makes `Texts` of strings that come one by one."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._ends = array("q")

    def add(self, text: str) -> None:
        self._blob += text.encode(errors="surrogateescape")
        self._ends.append(len(self._blob))

    def texts(self) -> Texts:
        return Texts(np.frombuffer(self._blob, np.uint8), integers(self._ends))


def integers(values: array[int]) -> Indices:
    """An array of the type "q" as int64, without a copy."""
    return np.frombuffer(values, np.int64)


class DataFiles:
    """Reads pieces of files from any thread; a file is opened when it is first read.

    Not mapped into memory: a mapped file that someone shortens kills the process.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._handles: dict[int, int] = {}
        weakref.finalize(self, _close, self._handles)

    def reader(self, file: int) -> Read:
        """`read(offset, size)` of one file."""
        return lambda offset, size: self.read(file, offset, size)

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; raises DataError where the file ends before, or cannot be read."""
        try:
            handle = self._handles.get(file)
            if handle is None:
                handle = os.open(self.paths[file], os.O_RDONLY | getattr(os, "O_BINARY", 0))
                # two threads may open it at the same time: the first one's stays
                if self._handles.setdefault(file, handle) != handle:
                    os.close(handle)
                    handle = self._handles[file]
            # a damaged length must not ask for memory
            available = os.fstat(handle).st_size - offset
            piece = os.pread(handle, size, offset) if 0 <= size <= available and offset >= 0 else b""
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from error
        if len(piece) != size:
            raise DataError(f"cut short: {size:,} bytes expected, {max(available, 0):,} left")
        return piece

    def place(self, file: int, offset: int) -> str:
        """Where a record is, for people."""
        return f"{self.paths[file]}, byte {offset}"


def _close(handles: dict[int, int]) -> None:
    for handle in handles.values():
        os.close(handle)


@dataclass
class Listed:
    """What the index file of a set names, before any record is read.

    `files` hold the records, `lists` are the text files that say so. Row k of `shards`, `offsets` (N,) int64, and
    `labels` (N,) int64 (None where the records hold them) is an image; `names` are the images' names, `identities` the
    people's by label, where the format has any. `broken` tells rows whose line cannot be understood.
    """

    files: list[Path]
    lists: list[Path]
    codec: Codec
    shards: Indices
    offsets: Indices
    labels: Indices | None = None
    names: Texts | None = None
    identities: list[str] | None = None
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


def read_lines(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Number and tab-separated fields of every line that is not empty; raises DataError when it is no text."""
    try:
        # file names may hold any bytes
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if text := line.rstrip("\r\n"):
                    yield number, text.split("\t")
    except OSError as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {reason}") from error


def whole_number(text: str) -> int:
    """A number from 0 as an index file writes it; raises DataError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataError(f"{text!r} is not a whole number from 0")
    return int(text)
