"""TensorFlow's TFRecord files of `tf.train.Example`, as TFace stores its faces, without TensorFlow.

A record is its payload's length (uint64, little-endian), the masked CRC-32C of these 8 bytes, the payload, and the
payload's masked CRC-32C (TensorFlow, "TFRecord and tf.train.Example"). The payload is an Example, a protocol buffer,
whose feature `image` holds one encoded image. Records carry no labels; text files beside them do:

- `NAME.txt`, TFace's training index: record set, shard, byte offset, label, separated by tabs;
- `NAME/NAME.index`: image path, shard, byte offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c

from ppfr.data.formats.record_sets.files import Read, Unpacked
from ppfr.util.errors import DataError

FEATURE = b"image"
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_LENGTH_BYTES = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def masked_crc(data: bytes) -> int:
    """CRC-32C rotated right by 15 bits plus a constant, so that checksums of data with checksums stay strong."""
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def pack_record(image: bytes) -> bytes:
    """One TFRecord holding the Example of an encoded image."""
    payload = _pack_example(image)
    length = struct.pack("<Q", len(payload))
    return length + _CRC.pack(masked_crc(length)) + payload + _CRC.pack(masked_crc(payload))


def record_size(read: Read, offset: int) -> int:
    """Bytes of the record at `offset`; raises DataError when no record begins there."""
    header = read(offset, _HEADER.size)
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[:_LENGTH_BYTES]):
        raise DataError("the checksum of the record's length is wrong: damaged, or no record begins here")
    return int(_HEADER.size + length + _CRC.size)


def unpack_record(record: bytes) -> Unpacked:
    """The encoded image in a whole record; raises DataError for a wrong checksum or another Example."""
    if len(record) < _HEADER.size or record_size(lambda offset, size: record[offset : offset + size], 0) != len(record):
        raise DataError("the record's length has changed")
    payload, crc = record[_HEADER.size : -_CRC.size], record[-_CRC.size :]
    if _CRC.unpack(crc)[0] != masked_crc(payload):
        raise DataError("the checksum of the record's content is wrong: damaged")
    return Unpacked(_unpack_example(payload), None)


# --- the part of protocol buffers that an Example needs --------------------------------------------------------------
# Example.features = 1; Features.feature = 1, a map: entry.key = 1, entry.value = 2; Feature.bytes_list = 1;
# BytesList.value = 1 (tensorflow/core/example/{example,feature}.proto)


def _pack_example(image: bytes) -> bytes:
    feature = _pack_bytes(1, _pack_bytes(1, image))
    entry = _pack_bytes(1, FEATURE) + _pack_bytes(2, feature)
    return _pack_bytes(1, _pack_bytes(1, entry))


def _pack_bytes(field: int, content: bytes) -> bytes:
    head = bytearray([field << 3 | _BYTES])
    length = len(content)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content


def _unpack_example(payload: bytes) -> bytes:
    names: list[str] = []
    for features in _fields(payload, 1):
        for entry in _fields(features, 1):
            key = b"".join(_fields(entry, 1))
            if key == FEATURE:
                values = [
                    value for feature in _fields(entry, 2) for kind in _fields(feature, 1) for value in _fields(kind, 1)
                ]
                if len(values) != 1:
                    raise DataError(f"the feature 'image' holds {len(values)} byte strings; expected one encoded image")
                return values[0]
            names.append(key.decode(errors="replace"))
    raise DataError(f"an Example without the feature 'image'; it has {', '.join(names) or 'none'}")


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of the fields `wanted` of a message that hold bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise DataError("not a tf.train.Example: a field is longer than its message")
            if field == wanted:
                yield message[position : position + length]
            position += length
        elif kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in {_FIXED64, _FIXED32}:
            position += 8 if kind == _FIXED64 else 4
        else:
            raise DataError(f"not a tf.train.Example: unknown field type {kind}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DataError("not a tf.train.Example: a number without an end")
