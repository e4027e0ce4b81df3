from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppfr.data.formats.record_sets.recordio import (
    MAGIC,
    Content,
    record_size,
    unpack_content,
    unpack_image,
    unpack_record,
)
from ppfr.data.sources import open_faces
from ppfr.util.errors import DataError
from support.recordio import RecordIOSet, pack_content, pack_record

# data in which the magic number is anything but rare
magical = st.lists(st.sampled_from([MAGIC, MAGIC[:2], b"\0", b"ab", b"abcd"]), max_size=12).map(b"".join)


def dmlc_record(data: bytes) -> bytes:
    """The writer of dmlc-core, word by word: the slow and obvious way."""
    out, start = b"", 0
    for at in range(0, len(data) // 4 * 4, 4):
        if data[at : at + 4] == MAGIC:
            out += MAGIC + struct.pack("<I", (1 if start == 0 else 2) << 29 | at - start) + data[start:at]
            start = at + 4
    rest = data[start:]
    return out + MAGIC + struct.pack("<I", (3 if start else 0) << 29 | len(rest)) + rest + bytes(-len(rest) % 4)


@given(st.binary(max_size=100) | magical)
@example(MAGIC)
@example(MAGIC * 3)
@example(b"a" + MAGIC)
def test_records_are_cut_at_the_magic_number_and_come_back(data: bytes):
    packed = pack_record(data)
    assert packed == dmlc_record(data)
    assert len(packed) % 4 == 0
    assert record_size(lambda offset, size: (b"junk" + packed)[offset : offset + size], 4) == len(packed)
    assert unpack_record(packed) == data


@given(magical, st.data())
def test_a_cut_record_is_noticed_and_a_changed_one_raises_nothing_else(data: bytes, draw: st.DataObject):
    packed = bytearray(pack_record(data))
    packed[draw.draw(st.integers(0, len(packed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with suppress(DataError):
        unpack_record(bytes(packed))
    for part in range(1, len(packed)):
        with pytest.raises(DataError):
            unpack_record(pack_record(data)[:part])


@given(st.integers(0, 2**24), st.binary(max_size=50), st.integers(0, 2**63))
def test_labels_and_images_come_back(label: int, image: bytes, key: int):
    one = unpack_content(pack_content(Content(0, (float(label),), key, image)))
    assert one == (0, (label,), key, image)
    two = unpack_content(pack_content(Content(2, (float(label), 0.5), key, image)))
    assert two == (2, (label, 0.5), key, image)
    assert unpack_image(pack_content(Content(1, (float(label),), key, image))) == (image, label)


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan"), float("inf")])
def test_a_label_that_is_no_class(label: float):
    with pytest.raises(DataError, match="expected a whole number from 0"):
        unpack_image(pack_content(Content(0, (label,), 0, b"x")))


def test_contents_that_are_none():
    with pytest.raises(DataError, match="3 bytes are too few for MXNet's image header of 24"):
        unpack_content(pack_record(b"abc"))
    with pytest.raises(DataError, match="promises 9 labels"):
        unpack_content(pack_record(struct.pack("<IfQQ", 9, 0, 0, 0)))
    with pytest.raises(DataError, match="the magic number is wrong"):
        unpack_content(b"\0" * 8)


@pytest.fixture
def rec(tmp_path: Path) -> RecordIOSet:
    return RecordIOSet(tmp_path / "train.rec")


class TestSets:
    def test_with_insightfaces_header(self, rec: RecordIOSet, image_bytes: Callable[..., bytes]):
        rec.add(0, (4.0, 6.0), b"", flag=2)
        for key, labels in enumerate([(0.0,), (0.0,), (1.0,)], 1):
            rec.add(key, labels, image_bytes(key, ".png"))
        rec.add(4, (1.0, 3.0), b"", flag=2)
        rec.add(5, (3.0, 4.0), b"", flag=2)
        faces = open_faces(rec.write(), size=16, strict=True)
        assert faces.labels.tolist() == [0, 0, 1]
        assert faces.identities == ["0", "1"]
        again = open_faces(rec.path.parent, size=16)
        np.testing.assert_array_equal(again.images(), faces.images())

    def test_without_a_header_keys_in_any_order_and_several_labels(
        self, rec: RecordIOSet, image_bytes: Callable[..., bytes]
    ):
        for key, label in ((7, 12.0), (3, 5.0), (5, 12.0)):
            rec.add(key, (label, 99.0), image_bytes(key, ".png"), flag=2)
        faces = open_faces(rec.write(), size=16)
        assert faces.identities == ["05", "12"]
        assert faces.labels.tolist() == [0, 1, 1]
        assert faces.names[2] == f"{rec.path}, byte 0"

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ((9.0, 12.0), "promises images 1..8 and identities 9..11, but train.idx has 2 keys"),
            ((1.5, 2.0), "label 1.5"),
        ],
    )
    def test_a_header_that_does_not_fit(
        self, rec: RecordIOSet, header: tuple[float, float], message: str, image_bytes: Callable[..., bytes]
    ):
        rec.add(0, header, b"", flag=2)
        rec.add(1, (0.0,), image_bytes(0))
        with pytest.raises(DataError, match=message):
            open_faces(rec.write())

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("", "names no record; expected lines of key, offset"),
            ("0\t0\n0\t8\n", "line 2: key 0 is there twice"),
            ("0\n", "line 1: .*expected key and offset"),
            ("0\t-1\n", "line 1: '-1' is not a whole number"),
        ],
    )
    def test_an_index_that_is_none(self, rec: RecordIOSet, index: str, message: str):
        rec.index = index
        with pytest.raises(DataError, match=message):
            open_faces(rec.write())

    def test_a_set_without_its_index(self, rec: RecordIOSet):
        rec.write()
        rec.path.with_suffix(".idx").unlink()
        with pytest.raises(DataError, match=r"train\.idx: file not found"):
            open_faces(rec.path)

    def test_a_broken_record_is_named_with_its_offset(self, rec: RecordIOSet, image_bytes: Callable[..., bytes]):
        rec.add(0, (0.0,), image_bytes(0))
        rec.add(1, (0.0,), b"no image")
        end = len(rec.data)
        rec.add(2, (1.0,), image_bytes(1))
        rec.data = rec.data[:-3]
        faces = open_faces(rec.write(), size=16)
        assert len(faces) == 1
        assert faces.skipped[0].reason == "not an image that OpenCV can decode"
        assert faces.skipped[1].path == f"{rec.path}, byte {end}"
        assert "cut short" in faces.skipped[1].reason
        with pytest.raises(DataError, match=r"2 refused under strict; .*train\.rec, byte"):
            open_faces(rec.path, size=16, strict=True)
