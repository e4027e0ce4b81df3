from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.images import decode_image, exif_orientation
from ppfr.data.preparation.photographs import Photograph, open_photographs
from ppfr.util.errors import DataError
from support.photographs import with_orientation


def scene(height: int = 60, width: int = 90) -> np.ndarray:
    """A smooth RGB picture with another colour in each corner."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


# where the first row and the first column of the stored picture belong, from the standard's own table
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: np.rot90(stored, 2),
    4: lambda stored: stored[::-1],
    5: lambda stored: np.rot90(stored, 1)[::-1],
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, -1)[::-1],
    8: lambda stored: np.rot90(stored, 1),
}


class TestOrientation:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_all_eight_as_the_standard_and_opencv_have_them(self, orientation: int, order: str):
        stored = jpeg(scene())
        data = with_orientation(stored, orientation, order)
        assert exif_orientation(data) == orientation
        image = decode_image(data, None)
        np.testing.assert_array_equal(image, TURNS[orientation](decode_image(stored, None)))
        by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(image, by_opencv)

    @pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", [3, 6])
    def test_other_formats(self, format: str, orientation: int):
        module = pytest.importorskip("PIL.Image", reason="Pillow writes the EXIF data")
        exif = module.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        module.fromarray(scene()).save(stream, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
        np.testing.assert_array_equal(decode_image(stream.getvalue(), None), TURNS[orientation](scene()))

    @pytest.mark.parametrize("orientation", [0, 9, 60000])
    def test_a_number_that_means_nothing_is_upright(self, orientation: int):
        data = with_orientation(jpeg(scene()), orientation)
        assert exif_orientation(data) == 1
        assert decode_image(data, None).shape == (60, 90, 3)

    @given(st.binary(max_size=80))
    def test_damaged_segments_are_upright(self, noise: bytes):
        plain = jpeg(scene(8, 8))
        segment = b"Exif\0\0II*\0" + noise
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
        assert exif_orientation(data) in range(1, 9)

    @given(st.integers(0, 200))
    def test_cut_anywhere(self, length: int):
        assert exif_orientation(with_orientation(jpeg(scene(8, 8)), 6)[:length]) in (1, 6)

    def test_damage_in_a_cameras_file_is_told(self):
        """OpenCV shows a smear for it."""
        data = bytearray(with_orientation(jpeg(scene(240, 320)), 6))
        middle = len(data) * 2 // 3
        data[middle : middle + 40] = bytes([0x55, 0xFF, 0x01, 0x37] * 10)
        with pytest.raises(DataError, match="damaged: Corrupt JPEG data"):
            decode_image(bytes(data), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "album"
    for name in (
        "b.jpg",
        "anna/2.JPG",
        "anna/10.png",
        "team/carl/x.webp",
        "team/y.tiff",
        "anna/.hidden.jpg",
        ".git/z.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(scene(8, 8)))
    for name in ("notes.txt", "anna/clip.MOV", "anna/b.mov", "README"):
        (root / name).write_bytes(b"")
    return root


class TestListing:
    def test_a_folder_names_people(self, folder: Path):
        found = open_photographs(folder)
        assert found.photos == [
            Photograph("b.jpg", "album"),
            Photograph("anna/10.png", "anna"),
            Photograph("anna/2.JPG", "anna"),
            Photograph("team/y.tiff", "team"),
            Photograph("team/carl/x.webp", "team/carl"),
        ]
        assert found.ignored == {".txt": 1, ".mov": 2, "without suffix": 1}

    def test_a_list_names_people(self, folder: Path):
        (folder / "list.csv").write_text("identity,path\nbob,anna/2.JPG\nal,b.jpg\nbob,gone.jpg\n")
        found = open_photographs(folder / "list.csv")
        assert found.photos == [
            Photograph("anna/2.JPG", "bob"),
            Photograph("b.jpg", "al"),
            Photograph("gone.jpg", "bob"),
        ]
        assert found.read(found.photos[1]).shape == (8, 8, 3)
        with pytest.raises(DataError, match=r"^file not found$"):
            found.read(found.photos[2])

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("path,identity\na.jpg,\n", "line 2: no identity"),
            ("path,identity\n,x\n", "line 2: no path"),
            ("path,identity\na.jpg,x\na.jpg,y\n", "line 3: 'a.jpg' is listed a second time"),
            ("path,who\na.jpg,x\n", "column identity is missing"),
            ("path,identity\n", "no photographs; expected"),
        ],
    )
    def test_a_list_that_cannot_be_meant(self, tmp_path: Path, lines: str, message: str):
        (tmp_path / "list.csv").write_text(lines)
        with pytest.raises(DataError, match=message):
            open_photographs(tmp_path / "list.csv")

    def test_no_photographs(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"absent: no such folder or list of photographs"):
            open_photographs(tmp_path / "absent")
        (tmp_path / "a.heic").write_bytes(b"x")
        with pytest.raises(DataError, match=r"no photographs; 1 other files \(\.heic\); expected \.avif, .*\.webp"):
            open_photographs(tmp_path)
        with pytest.raises(DataError, match=r"a\.heic: expected a folder or a \.csv list of photographs"):
            open_photographs(tmp_path / "a.heic")
