"""Full-range YCbCr against OpenCV's, its inverse, and refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from ppfr.transforms import rgb_to_ycbcr, ycbcr_to_rgb
from ppfr.util.errors import ShapeError


def test_agrees_with_opencv_up_to_its_rounding() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]].transpose(2, 0, 1).astype(float)
    actual = rgb_to_ycbcr(torch.from_numpy(rgb).permute(2, 0, 1).double()).numpy()
    off = np.abs(np.clip(actual, 0, 255) - expected).max(axis=(1, 2))
    assert off[0] < 0.51
    assert off[1:].max() < 1  # OpenCV's chroma scales have three digits


def test_primaries_have_the_values_of_the_jfif_formula() -> None:
    primaries = 255 * torch.eye(3, dtype=torch.float64)[None, :, None]  # red, green and blue pixels in a row
    luma, blue_chroma, red_chroma = rgb_to_ycbcr(primaries)[0, :, 0]
    torch.testing.assert_close(luma, 255 * torch.tensor([0.299, 0.587, 0.114]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(blue_chroma, torch.tensor([84.97232, 43.52765, 255.5]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(red_chroma, torch.tensor([255.5, 21.23463, 107.26541]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_round_trip_keeps_values_and_dtype(dtype: torch.dtype, atol: float, generator: torch.Generator) -> None:
    images = 400 * torch.rand(2, 4, 3, 9, 11, generator=generator, dtype=dtype) - 70
    there = rgb_to_ycbcr(images)
    torch.testing.assert_close(ycbcr_to_rgb(there), images, atol=atol, rtol=0)
    assert (there - images).abs().max() > 10


@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(8, 8), r"shape \(8, 8\); expected \(\.\.\., 3, H, W\)"),
        (torch.zeros(2, 8, 8, 3), r"shape \(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"dtype torch.uint8.*call \.float\(\)"),
    ],
)
def test_wrong_images_are_refused(convert: object, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        convert(images)  # type: ignore[operator]
