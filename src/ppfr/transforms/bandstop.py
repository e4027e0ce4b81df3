"""Band-stop filter: removes frequencies of the block DCT from images without computing the DCT's channels.

`inverse_block_dct` of the channels that `block_dct` makes is linear, the same for every colour, and separable:
frequency 8 * v + u leaves K_v X K_u^T of a plane X, with tridiagonal matrices K (`round_trip_matrix`), and all 64
together leave K X K^T with K their sum. Removing a few frequencies is therefore a difference of small stencils, where
the direct computation makes three planes of up to 63 channels for every image.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ppfr.transforms.dct import BLOCK, FREQUENCIES, round_trip_matrix
from ppfr.util.errors import ShapeError

_MIDDLE = 128 / 255  # what JPEG subtracts from its samples, as a share of white


def remove_frequencies(images: Tensor, frequencies: Iterable[int] = (0,), *, raw_range: bool = False) -> Tensor:
    """RGB images (B, 3, H, W), about [0, 1] and not clamped, without `frequencies` 8 * v + u of 0..63 in each colour.

    The images are RGB (B, 3, H, W) in [-1, 1], H and W at least 8. Equals `inverse_block_dct` with `clamp=False` of the
    other frequencies of `block_dct`, `raw_range` included. Without frequency 0 each pixel loses its local mean and mid
    grey, 128/255, takes its place: the server's image of PrivacyHFR. Differentiable any number of times; half precision
    is computed and returned in float32. Raises ShapeError.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < BLOCK or not images.is_floating_point():
        raise ShapeError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected floats (B, 3, H, W), H and W at least "
            f"{BLOCK}"
        )
    removed = sorted(set(frequencies))
    outside = [frequency for frequency in removed if not 0 <= frequency < FREQUENCIES]
    if outside:
        raise ShapeError(f"frequencies {outside} are out of range; expected 8 * v + u in 0..{FREQUENCIES - 1}")
    images = images if images.dtype == torch.float64 else images.float()
    planes = images - _MIDDLE if raw_range else images / 2 + (0.5 - _MIDDLE)
    kept = _separable(planes, None, None)
    for vertical, horizontal in (divmod(frequency, BLOCK) for frequency in removed):
        kept = kept - _separable(planes, vertical, horizontal)
    return kept + _MIDDLE


def _separable(planes: Tensor, vertical: int | None, horizontal: int | None) -> Tensor:
    """K_v X K_u^T of planes (..., H, W)."""
    height, width = planes.shape[-2:]
    below, middle, above = _diagonals(round_trip_matrix(width, horizontal), planes)
    padded = F.pad(planes, (1, 1))
    lines = (padded[..., 1:-1] * middle).addcmul(padded[..., :-2], below).addcmul(padded[..., 2:], above)
    below, middle, above = (weights[:, None] for weights in _diagonals(round_trip_matrix(height, vertical), planes))
    padded = F.pad(lines, (0, 0, 1, 1))
    return (padded[..., 1:-1, :] * middle).addcmul(padded[..., :-2, :], below).addcmul(padded[..., 2:, :], above)


def _diagonals(matrix: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The diagonal below, the main one and the one above of a tridiagonal matrix, each padded to the matrix's size."""
    below, middle, above = (matrix.diagonal(offset) for offset in (-1, 0, 1))
    return F.pad(below, (1, 0)).to(like), middle.to(like), F.pad(above, (0, 1)).to(like)
