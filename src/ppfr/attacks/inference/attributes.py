"""Soft attributes that can be measured on any aligned face, without labels made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppfr.methods.common.method import check_images

DARK_HAIR = "dark hair"
# brightness of the band above the forehead, as a share of the cheeks': about half of all photos lie below
_DARK = 0.3
# as shares of the template's height and width: rows and columns of the band, rows of the cheeks and columns of each
_BAND = (0.0, 0.07), (0.27, 0.73)
_CHEEK_ROWS, _CHEEKS = (0.59, 0.71), ((0.30, 0.41), (0.59, 0.70))
_LUMA = (0.299, 0.587, 0.114)
_BLACK = 0.02


def dark_hair(images: Tensor) -> Tensor:
    """Classes (B,) int64 of aligned faces (B,3,H,W) RGB in [-1,1]: 1 where a band above the forehead is dark, else 0.

    The band mostly shows hair, sometimes a hat, a bald head or the background. It is dark if its median luma (BT.601,
    0..1) is below 0.3 of the cheeks' in the same photo, so that exposure matters little. Raises ShapeError for other
    shapes and ranges.
    """
    return (hair_brightness(images) < _DARK).long()


def hair_brightness(images: Tensor) -> Tensor:
    """Median luma (B,) of the band above the forehead, as a share of the cheeks'; see `dark_hair`."""
    check_images(images)
    luma = torch.einsum("bchw,c->bhw", images.float() / 2 + 0.5, images.new_tensor(_LUMA, dtype=torch.float32))
    rows, columns = (_span(share, length) for share, length in zip(_BAND, luma.shape[1:], strict=True))
    cheek_rows = _span(_CHEEK_ROWS, luma.shape[1])
    cheeks = torch.cat([luma[:, cheek_rows, _span(share, luma.shape[2])].flatten(1) for share in _CHEEKS], 1)
    return luma[:, rows, columns].flatten(1).median(1).values / (cheeks.median(1).values + _BLACK)


def _span(share: tuple[float, float], length: int) -> slice:
    first = math.floor(share[0] * length)
    return slice(first, max(first + 1, math.ceil(share[1] * length)))


ATTRIBUTES: Mapping[str, Callable[[Tensor], Tensor]] = {DARK_HAIR: dark_hair}
"""Attributes that can be measured on clear images (B,3,H,W) RGB in [-1,1], as classes (B,) int64."""

__all__ = ["ATTRIBUTES", "DARK_HAIR", "dark_hair", "hair_brightness"]
