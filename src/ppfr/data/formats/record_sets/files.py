"""Reading pieces of large files, and the content of an index file, as both record formats need them."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppfr.data.faceset import Indices
from ppfr.util.errors import DataError

Read = Callable[[int, int], bytes]
"""`read(offset, size)`: exactly so many bytes of a file, or a DataError."""


class Unpacked(NamedTuple):
    """An encoded image, and its label where the record holds one."""

    image: bytes
    label: int | None


class Codec(NamedTuple):
    """How a format finds the size of the record at an offset, and the image in a whole record."""

    size: Callable[[Read, int], int]
    unpack: Callable[[bytes], Unpacked]


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

    def __reduce__(self) -> tuple[type[DataFiles], tuple[list[Path]]]:
        return DataFiles, (self.paths,)

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
        """File and position of a record, for messages."""
        return f"{self.paths[file]}, byte {offset}"


def _close(handles: dict[int, int]) -> None:
    for handle in handles.values():
        os.close(handle)


@dataclass
class Listed:
    """The content of the index file of a set, before any record is read.

    `files` hold the records, `lists` are the text files that name them. Row k of `shards`, `offsets` (N,) int64, and
    `labels` (N,) int64 (None where the records hold them) is an image; `names` are the images' names, `identities` the
    people's by label, where the format has any. `broken` gives the reason for rows whose line cannot be understood.
    """

    files: list[Path]
    lists: list[Path]
    codec: Codec
    shards: Indices
    offsets: Indices
    labels: Indices | None = None
    names: list[str] | None = None
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
