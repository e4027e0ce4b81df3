from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.formats.listings import open_records
from ppfr.data.formats.record_sets.tfrecord import masked_crc, pack_record, record_size, unpack_record
from ppfr.data.sources import open_faces
from ppfr.util.errors import DataError


def crc32c_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


@pytest.fixture
def golden_set(shared: Path) -> Path:
    return shared / "golden" / "tfrecord"


@given(st.binary(max_size=50))
def test_the_checksum_against_bits(data: bytes):
    crc = crc32c_bit_by_bit(data)
    assert masked_crc(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@given(st.binary(max_size=3000))
def test_a_record_comes_back(image: bytes):
    packed = pack_record(image)
    assert record_size(lambda offset, size: packed[offset : offset + size], 0) == len(packed)
    assert unpack_record(packed) == (image, None)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_changed_bit_is_noticed(image: bytes, data: st.DataObject):
    packed = bytearray(pack_record(image))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataError):
        unpack_record(bytes(packed))
    with pytest.raises(DataError):
        unpack_record(pack_record(image)[: data.draw(st.integers(0, len(packed) - 1))])


class TestExamples:
    def test_other_features_are_passed_over(self):
        # {"label": int64_list, "image": ...}, the map's entries in this order, and a field this reader does not know
        label = b"\x0a\x0e\x0a\x05label\x12\x05\x1a\x03\x0a\x01\x07"
        image = b"\x0a\x11\x12\x08\x0a\x06\x0a\x04JPEG\x0a\x05image"
        features = label + b"\x18\x05" + image
        assert unpack_record(record(b"\x0a" + bytes([len(features)]) + features)).image == b"JPEG"

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            (b"", "without the feature 'image'; it has none"),
            (b"\x0a\x09\x0a\x07\x0a\x05label", "without the feature 'image'; it has label"),
            (b"\x0a\x09\x0a\x07\x0a\x05image", "holds 0 byte strings; expected one"),
            (b"\x0a\x50\x0a", "a field is longer than its message"),
            (b"\xff" * 12, "a number without an end"),
            (b"\x0b", "unknown field type 3"),
        ],
    )
    def test_what_is_none(self, payload: bytes, message: str):
        with pytest.raises(DataError, match=message):
            unpack_record(record(payload))

    @given(st.binary(max_size=60))
    def test_nothing_but_a_data_error(self, payload: bytes):
        with suppress(DataError):
            unpack_record(record(payload))


class TestGolden:
    def test_the_training_index(self, golden_set: Path, golden: Callable[[str], Any]):
        expected = golden("tfrecord/decoded.npz")
        faces = open_faces(golden_set / "TFR-GOLD.txt", strict=True)
        np.testing.assert_array_equal(faces.images(), expected["images"])
        np.testing.assert_array_equal(faces.labels, expected["labels"])
        assert faces.identities == ["0", "1", "2", "3"]

    def test_the_index_of_images(self, golden_set: Path, golden: Callable[[str], Any]):
        expected = golden("tfrecord/decoded.npz")
        faces = open_faces(golden_set / "TFR-GOLD" / "TFR-GOLD.index", strict=True)
        np.testing.assert_array_equal(faces.images(), expected["images"])
        assert faces.names[0] == "test/07462/197525.jpg"
        assert faces.identities == ["test/07258", "test/07309", "test/07416", "test/07462"]
        # the same people under other numbers
        assert len(set(zip(faces.labels.tolist(), expected["labels"].tolist(), strict=True))) == 4

    def test_bytes_and_offsets(self, golden_set: Path, golden: Callable[[str], Any]):
        expected = golden("tfrecord/decoded.npz")
        records = open_records(golden_set / "TFR-GOLD.txt")
        data = (golden_set / "TFR-GOLD" / "TFR-GOLD-00000.tfrecord").read_bytes()
        for row, (digest, offset) in enumerate(zip(expected["sha256"], expected["offsets"], strict=True)):
            image = records.data(row)
            assert hashlib.sha256(image).hexdigest() == digest
            assert data[offset:].startswith(pack_record(image))
