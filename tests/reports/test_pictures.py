"""Contact sheets and PNG files."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppfr.reports.pictures import contact_sheet, png_data_uri, save_png
from ppfr.util.errors import ShapeError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class TestContactSheet:
    def test_images_keep_their_pixels_and_places(self) -> None:
        images = [[noise(64, 64, 3, seed=4 * row + column) for column in range(3)] for row in range(2)]
        sheet = contact_sheet(images, cell=64)
        margin, gap = 8, 4
        for row in range(2):
            for column in range(3):
                top, left = margin + row * (64 + gap), margin + column * (64 + gap)
                np.testing.assert_array_equal(sheet[top : top + 64, left : left + 64], images[row][column])
        assert sheet.shape == (2 * margin + 2 * 64 + gap, 2 * margin + 3 * 64 + 2 * gap, 3)
        assert (sheet[:margin] == 255).all()

    def test_labels_take_room_and_leave_ink(self) -> None:
        rows = [[noise(32, 48, 3)], [noise(80, 80, 3), noise(8, 8, 3)]]
        plain = contact_sheet(rows)
        labelled = contact_sheet(rows, ["photo", "what the server sees"], ["first", "Zoë"])
        assert labelled.shape[0] > plain.shape[0]
        assert labelled.shape[1] > plain.shape[1]
        extra = labelled.shape[1] - plain.shape[1]
        assert (labelled[:, :extra] < 100).any()

    @pytest.mark.parametrize("label", ["$\\frac{1}{$", "_hidden", "x" * 300, "", "two\nlines", "<b>&amp;"])
    def test_any_label_is_text(self, label: str) -> None:
        sheet = contact_sheet([[noise(32, 32, 3)]], [label], [label], cell=32)
        assert sheet.dtype == np.uint8

    def test_refusals(self) -> None:
        image = noise(8, 8, 3)
        with pytest.raises(ShapeError, match="at least one image"):
            contact_sheet([[]])
        with pytest.raises(ShapeError, match="1 row labels for 2 rows"):
            contact_sheet([[image], [image]], ["one"])
        with pytest.raises(ShapeError, match="2 column labels for 1 columns"):
            contact_sheet([[image]], [], ["one", "two"])
        with pytest.raises(ShapeError, match=r"float64 \(8, 8, 3\); expected RGB uint8"):
            contact_sheet([[image / 255]])


class TestPng:
    def test_a_file_holds_the_pixels(self, tmp_path: Path) -> None:
        image = noise(20, 30, 3)
        save_png(tmp_path / "deep" / "picture.png", image)
        read = cv2.cvtColor(cv2.imread(str(tmp_path / "deep" / "picture.png")), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(read, image)
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["picture.png"]

    def test_an_address_holds_the_pixels(self) -> None:
        image = noise(20, 30, 3)
        head, data = png_data_uri(image).split(",")
        assert head == "data:image/png;base64"
        read = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), image)

    @pytest.mark.parametrize("image", [noise(8, 8), noise(8, 8, 4), noise(0, 8, 3), noise(8, 8, 3).astype(float)])
    def test_refused_pictures_leave_the_file_alone(self, image: np.ndarray, tmp_path: Path) -> None:
        path = tmp_path / "picture.png"
        path.write_bytes(b"before")
        with pytest.raises(ShapeError, match="expected RGB uint8"):
            save_png(path, image)
        assert path.read_bytes() == b"before"
