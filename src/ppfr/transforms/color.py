"""Full-range YCbCr, the colour space of JPEG files and of every block-DCT front end."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.util.errors import ShapeError

# Luma weights of ITU-R BT.601, which JFIF 1.02 (1992) takes over. The chroma scales follow: they give
# blue - luma and red - luma the range of luma.
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB_SCALE = 2 * (1 - _BLUE)
_CR_SCALE = 2 * (1 - _RED)
_CHROMA_CENTRE = 128.0


def rgb_to_ycbcr(images: Tensor) -> Tensor:
    """Convert RGB to full-range YCbCr (JFIF 1.02, 1992).

    `images` are floats (..., 3, H, W) in [0, 255]; so is the result, Cb and Cr centred on 128. Nothing is
    clamped or rounded. Raises ShapeError.
    """
    luma, blue_chroma, red_chroma = split_luma_chroma(_checked(images))
    return torch.stack([luma, blue_chroma + _CHROMA_CENTRE, red_chroma + _CHROMA_CENTRE], dim=-3)


def ycbcr_to_rgb(images: Tensor) -> Tensor:
    """Convert full-range YCbCr to RGB: the inverse of `rgb_to_ycbcr`, with its shapes, ranges and errors."""
    luma, blue_chroma, red_chroma = _checked(images).unbind(-3)
    return join_luma_chroma(luma, blue_chroma - _CHROMA_CENTRE, red_chroma - _CHROMA_CENTRE)


def split_luma_chroma(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y, Cb and Cr planes (..., H, W) of RGB images (..., 3, H, W) of any scale, the chroma centred on zero.

    This is the linear part of `rgb_to_ycbcr`.
    """
    red, green, blue = images.unbind(-3)
    luma = (_RED * red).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)
    return luma, (blue - luma) / _CB_SCALE, (red - luma) / _CR_SCALE


def join_luma_chroma(luma: Tensor, blue_chroma: Tensor, red_chroma: Tensor) -> Tensor:
    """The inverse of `split_luma_chroma`: RGB (..., 3, H, W) of three planes (..., H, W)."""
    images = torch.stack([luma, luma, luma], dim=-3)
    red, green, blue = images.select(-3, 0), images.select(-3, 1), images.select(-3, 2)
    red.add_(red_chroma, alpha=_CR_SCALE)
    green.sub_(red_chroma, alpha=_CR_SCALE * _RED / _GREEN).sub_(blue_chroma, alpha=_CB_SCALE * _BLUE / _GREEN)
    blue.add_(blue_chroma, alpha=_CB_SCALE)
    return images


def _checked(images: Tensor) -> Tensor:
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ShapeError(f"images have shape {tuple(images.shape)}; expected (..., 3, H, W)")
    if not images.is_floating_point():
        raise ShapeError(f"images have dtype {images.dtype}; expected values in [0, 255] as floats: call .float()")
    return images
