"""Full-range YCbCr, the colour space of JPEG files and of every block-DCT front end."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.errors import ShapeError

# Luma weights of ITU-R BT.601, which JFIF 1.02 (1992) takes over; the chroma scales follow from them.
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB_SCALE = 2 * (1 - _BLUE)  # 1.772: the largest |B - Y| / 255, times two
_CR_SCALE = 2 * (1 - _RED)  # 1.402

TO_YCBCR = (
    (_RED, _GREEN, _BLUE),
    (-_RED / _CB_SCALE, -_GREEN / _CB_SCALE, 0.5),
    (0.5, -_GREEN / _CR_SCALE, -_BLUE / _CR_SCALE),
)
TO_RGB = (
    (1.0, 0.0, _CR_SCALE),
    (1.0, -_BLUE * _CB_SCALE / _GREEN, -_RED * _CR_SCALE / _GREEN),
    (1.0, _CB_SCALE, 0.0),
)
CHROMA_OFFSET = 128.0


def rgb_to_ycbcr(images: Tensor) -> Tensor:
    """Convert RGB to full-range YCbCr with the constants of JFIF 1.02 (1992).

    `images` is (..., 3, H, W) in [0, 255], float32 or float64; the result has the same shape, Y in [0, 255], Cb and Cr
    centred on 128. Values outside the range are neither clamped nor rounded. Raises ShapeError.
    """
    _check(images)
    red, green, blue = images.unbind(-3)
    planes = [_weighted(row, red, green, blue) for row in TO_YCBCR]
    return torch.stack([planes[0], planes[1] + CHROMA_OFFSET, planes[2] + CHROMA_OFFSET], dim=-3)


def ycbcr_to_rgb(images: Tensor) -> Tensor:
    """Convert full-range YCbCr to RGB, the exact inverse of `rgb_to_ycbcr`: same shapes, ranges and errors."""
    _check(images)
    luma, blue_difference, red_difference = images.unbind(-3)
    blue_difference, red_difference = blue_difference - CHROMA_OFFSET, red_difference - CHROMA_OFFSET
    return torch.stack([_weighted(row, luma, blue_difference, red_difference) for row in TO_RGB], dim=-3)


def _weighted(row: tuple[float, float, float], first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    return row[0] * first + row[1] * second + row[2] * third


def _check(images: Tensor) -> None:
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ShapeError(f"images have shape {tuple(images.shape)}; expected (..., 3, H, W)")
    if not images.is_floating_point():
        raise ShapeError(
            f"images have dtype {images.dtype}; expected floating point values in [0, 255]: use .float()"
        )
