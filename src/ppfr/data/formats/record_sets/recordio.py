"""MXNet's RecordIO files, as InsightFace stores its faces (`train.rec`, `train.idx`), without MXNet.

A part is the magic number, 3 bits of flag and 29 bits of length, the data, and zeros up to a multiple of 4 (dmlc-core,
recordio.h). Where data holds the magic number at a multiple of 4, it is cut there into parts, so that a reader that
lost its way finds the next record; the flag says whole, first, middle or last. In the data an image follows a header
(mxnet/recordio.py, IRHeader): flag (uint32), label (float32), id and id2 (uint64); flag > 0 says that so many float32
labels follow. InsightFace adds record 0, without an image, whose labels (a, b) say that images have the keys 1..a-1 and
identities a..b-1; the record of an identity holds the first key of its images and the one after the last.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppfr.data.formats.record_sets.files import Read, Unpacked
from ppfr.util.errors import DataError

MAGIC = struct.pack("<I", 0xCED7230A)
LONGEST = (1 << 29) - 1
_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class Content(NamedTuple):
    """A record's labels, its id and its image (empty in records about the set)."""

    flag: int
    labels: tuple[float, ...]
    key: int
    image: bytes


def record_size(read: Read, offset: int) -> int:
    """Bytes of the record at `offset` with all its parts; raises DataError when no record begins there."""
    size = 0
    while True:
        flag, length = _part(read(offset + size, _PART.size), first=size == 0)
        size += _PART.size + length + -length % 4
        if flag in {_WHOLE, _LAST}:
            return size


def _part(head: bytes, *, first: bool) -> tuple[int, int]:
    magic, word = _PART.unpack(head)
    flag, length = word >> 29, word & LONGEST
    if magic != MAGIC:
        raise DataError("the magic number is wrong: damaged, or no record begins here")
    if flag not in ({_WHOLE, _FIRST} if first else {_MIDDLE, _LAST}):
        raise DataError(f"part flag {flag} at the {'beginning' if first else 'continuation'} of a record: damaged")
    return flag, length


def unpack_record(record: bytes) -> bytes:
    """The data of a whole record, put together again; raises DataError when its parts do not fit."""
    if record_size(lambda offset, size: _slice(record, offset, size), 0) != len(record):
        raise DataError("the record's length has changed")
    pieces: list[bytes] = []
    position = 0
    while position < len(record):
        _, length = _part(record[position : position + _PART.size], first=not pieces)
        position += _PART.size
        pieces.append(record[position : position + length])
        position += length + -length % 4
    return MAGIC.join(pieces)


def _slice(record: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(record):
        raise DataError("the record's length has changed")
    return record[offset : offset + size]


def unpack_content(record: bytes) -> Content:
    """Labels, id and image of a whole record; raises DataError when it holds none."""
    data = unpack_record(record)
    if len(data) < _HEADER.size:
        raise DataError(f"{len(data)} bytes are too few for MXNet's image header of {_HEADER.size}")
    flag, label, key, _ = _HEADER.unpack_from(data)
    end = _HEADER.size + 4 * flag
    if len(data) < end:
        raise DataError(f"the header promises {flag} labels, more than the record holds")
    labels = np.frombuffer(data, "<f4", flag, _HEADER.size).tolist() if flag else [label]
    return Content(flag, tuple(labels), key, data[end:])


def unpack_image(record: bytes) -> Unpacked:
    """The encoded image and the first label of a record; raises DataError when the label is no class."""
    content = unpack_content(record)
    return Unpacked(content.image, whole(content.labels)[0])


def whole(labels: Sequence[float]) -> list[int]:
    """Float labels as the whole numbers they must be; raises DataError otherwise."""
    for label in labels:
        if not (label >= 0 and label.is_integer()):
            raise DataError(f"label {label}; expected a whole number from 0")
    return [int(label) for label in labels]
