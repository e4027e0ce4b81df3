"""Step-one version (correct first, fast next)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from ppfr.errors import ShapeError
from ppfr.transforms.color import TO_RGB, TO_YCBCR

BLOCK = 8
FREQUENCIES = BLOCK * BLOCK
_MIDDLE = 128.0


@lru_cache(maxsize=1)
def _dct8() -> Tensor:
    """(8, 8) orthonormal type-II DCT: row k is the basis function of frequency k."""
    k = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


@lru_cache(maxsize=32)
def _stack(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(8, size, size): M_u for every u."""
    with torch.inference_mode(False):
        position = torch.arange(BLOCK * size, dtype=torch.float64) * (size - 1) / (BLOCK * size - 1)
        left = position.floor().clamp(max=size - 2)
        up = torch.zeros(BLOCK * size, size, dtype=torch.float64)
        up.scatter_(1, left.long()[:, None], (1 - position + left)[:, None])
        up.scatter_(1, left.long()[:, None] + 1, (position - left)[:, None])
        matrices = torch.einsum("uk,ikj->uij", _dct8(), up.view(size, BLOCK, size))
        return matrices.to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def _taps(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(8, size): the weight of frequency u of block i in pixel i of the shrunk image."""
    with torch.inference_mode(False):
        offset = torch.arange(size, dtype=torch.float64) * (BLOCK - 1) / (size - 1)
        low = offset.floor().clamp(max=BLOCK - 2).long()
        fraction = offset - low
        basis = _dct8()
        return ((1 - fraction) * basis[:, low] + fraction * basis[:, low + 1]).to(device=device, dtype=dtype)


def frequency_matrix(
    size: int,
    frequency: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The (size, size) tridiagonal M_u that takes a line of pixels to frequency u of every block of its 8x enlargement.

    Channel (v, u) of a plane X of `block_dct` is M_v X M_u^T. Raises ShapeError.
    """
    if size < BLOCK or not 0 <= frequency < BLOCK:
        raise ShapeError(
            f"size {size}, frequency {frequency}; expected size >= 8 and a 1-D frequency in 0..7"
        )
    return _stack(size, torch.device(device or "cpu"), dtype)[frequency].clone()


def check_frequencies(frequencies: Iterable[int] | None) -> tuple[int, ...]:
    """The frequencies as a tuple of ints, all 64 for None; raises ShapeError for duplicates or values outside 0..63."""
    if frequencies is None:
        return tuple(range(FREQUENCIES))
    chosen = tuple(int(f) for f in frequencies)
    if not chosen:
        raise ShapeError("frequencies is empty; expected at least one of 0..63, or None for all")
    outside = [f for f in chosen if not 0 <= f < FREQUENCIES]
    if outside:
        raise ShapeError(f"frequencies {outside} are out of range; expected 8 * v + u in 0..63")
    twice = sorted({f for f in chosen if chosen.count(f) > 1})
    if twice:
        raise ShapeError(f"frequencies {twice} occur more than once; each frequency makes one channel")
    return chosen


def _working(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def block_dct(images: Tensor, frequencies: Iterable[int] | None = None, *, raw_range: bool = False) -> Tensor:
    """Block-DCT coefficients (B, 3, F, H, W) of the 8x enlarged YCbCr image; images (B, 3, H, W) RGB in [-1, 1]."""
    chosen = check_frequencies(frequencies)
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < BLOCK:
        raise ShapeError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) with H, W >= 8")
    if not images.is_floating_point():
        raise ShapeError(f"images have dtype {images.dtype}; expected floating point values in [-1, 1]")
    with torch.autocast(images.device.type, enabled=False):
        x = _working(images)
        rows = _stack(x.shape[2], x.device, x.dtype)
        columns = _stack(x.shape[3], x.device, x.dtype)
        pixels = x * 255 if raw_range else (x + 1) * 127.5
        planes = torch.einsum("dc,bchw->bdhw", x.new_tensor(TO_YCBCR), pixels)
        planes = planes - x.new_tensor([_MIDDLE, 0.0, 0.0]).view(3, 1, 1)
        return torch.stack([rows[f // 8] @ (planes @ columns[f % 8].T) for f in chosen], dim=2)


def inverse_block_dct(
    coefficients: Tensor, frequencies: Iterable[int] | None = None, clamp: bool = True
) -> Tensor:
    """The image (B, 3, H, W) in [0, 1] of coefficients (B, 3, F, H, W); missing frequencies are zero."""
    chosen = check_frequencies(frequencies)
    shape = tuple(coefficients.shape)
    if len(shape) != 5 or shape[1:3] != (3, len(chosen)) or min(shape[3:]) < BLOCK:
        raise ShapeError(
            f"coefficients have shape {shape}; expected (B, 3, {len(chosen)}, H, W) with H, W >= 8"
        )
    if not coefficients.is_floating_point():
        raise ShapeError(f"coefficients have dtype {coefficients.dtype}; expected floating point values")
    with torch.autocast(coefficients.device.type, enabled=False):
        x = _working(coefficients)
        rows = _taps(shape[3], x.device, x.dtype)[[f // 8 for f in chosen]]
        columns = _taps(shape[4], x.device, x.dtype)[[f % 8 for f in chosen]]
        planes = torch.einsum("bcfhw,fh,fw->bchw", x, rows, columns)
        planes = planes + x.new_tensor([_MIDDLE, 0.0, 0.0]).view(3, 1, 1)
        images = torch.einsum("dc,bchw->bdhw", x.new_tensor(TO_RGB), planes) / 255
        return images.clamp(0, 1) if clamp else images
