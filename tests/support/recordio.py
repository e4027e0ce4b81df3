"""Writes RecordIO sets as MXNet's MXIndexedRecordIO does, for tests of the reader."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ppfr.data.formats.record_sets.recordio import MAGIC, Content

_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class RecordIOSet:
    """A `.rec` file with its `.idx` in memory, until it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = b""
        self.index = ""

    def add(self, key: int, labels: tuple[float, ...], image: bytes, flag: int = 0) -> None:
        self.index += f"{key}\t{len(self.data)}\n"
        self.data += pack_content(Content(flag, labels, key, image))

    def write(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(self.data)
        self.path.with_suffix(".idx").write_text(self.index)
        return self.path


def pack_content(content: Content) -> bytes:
    """The record of a content; flag 0 for one label, else the number of labels."""
    if content.flag:
        labels = np.asarray(content.labels, "<f4").tobytes()
        return pack_record(_HEADER.pack(content.flag, 0, content.key, 0) + labels + content.image)
    return pack_record(_HEADER.pack(0, content.labels[0], content.key, 0) + content.image)


def pack_record(data: bytes) -> bytes:
    """One record, in several parts where the data holds the magic number."""
    pieces = _cut(data)
    flags = [_WHOLE] if len(pieces) == 1 else [_FIRST, *[_MIDDLE] * (len(pieces) - 2), _LAST]
    return b"".join(
        _PART.pack(MAGIC, flag << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
        for flag, piece in zip(flags, pieces, strict=True)
    )


def _cut(data: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    start, found = 0, data.find(MAGIC)
    while found >= 0:
        if found % 4 == 0:
            pieces.append(data[start:found])
            start = found + len(MAGIC)
        found = data.find(MAGIC, found + (len(MAGIC) if found % 4 == 0 else 1))
    return [*pieces, data[start:]]
