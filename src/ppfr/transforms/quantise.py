"""Uniform quantisation and magnitude pruning of feature maps, with straight-through gradients for training."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.util.errors import ShapeError

# candidate clipping thresholds, as shares of the largest magnitude, and the number of values that choose among them
_REACHES = (1.0, 0.8, 0.64, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.125, 0.1)
_SAMPLE = 16384


def quantise(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round each image's values (B,...) to whole multiples of a step of its own: levels int8 (B,...) and steps (B,).

    Levels are whole numbers up to 2^(bits-1) - 1 either side of 0, so that 0 stays 0. Of steps that reach from the
    largest magnitude down to a tenth of it, what lies beyond being cut, each image takes the one with the least squared
    error: with few bits that cuts outliers. The step of an image of zeros is 0. `bits` are 2..8. Raises ShapeError.
    """
    if not 2 <= bits <= 8:
        raise ShapeError(f"bits is {bits}; expected 2..8")
    largest = 2 ** (bits - 1) - 1
    flat = values.detach().flatten(1)
    reach = flat.abs().amax(1)
    sample = flat[:, :: -(-flat.shape[1] // _SAMPLE)]
    candidates = [reach * share / largest for share in _REACHES]
    errors = [
        (_rounded(sample, steps, largest) * _along(steps, sample) - sample).square().sum(1) for steps in candidates
    ]
    best = torch.stack(errors).argmin(0)
    steps = torch.stack(candidates).gather(0, best[None])[0]
    return _rounded(values, steps, largest).to(torch.int8), steps


def _rounded(values: Tensor, steps: Tensor, largest: int) -> Tensor:
    return (values / _along(steps.clamp_min(1e-30), values)).round().clamp(-largest, largest)


def dequantise(levels: Tensor, steps: Tensor) -> Tensor:
    """Turn levels (B,...) and steps (B,) back into values, of the steps' type."""
    return levels.to(steps.dtype) * _along(steps, levels)


def prune(values: Tensor, share: float) -> Tensor:
    """Set the smallest magnitudes of each image (B,...), `share` of them in [0,1], to zero.

    Values as large as the smallest that is kept are kept too. Raises ShapeError for another share.
    """
    if not 0 <= share <= 1:
        raise ShapeError(f"share is {share}; expected 0..1")
    magnitudes = values.detach().abs().flatten(1)
    gone = int(share * magnitudes.shape[1])
    if not gone or not len(values):
        return values
    if gone == magnitudes.shape[1]:
        return torch.zeros_like(values)
    least = magnitudes.kthvalue(gone + 1, dim=1).values
    return values * (values.abs() >= _along(least, values))


def straight_through(values: Tensor, changed: Tensor) -> Tensor:
    """`changed` forwards, and the gradient of `values` backwards (Bengio et al. 2013, arXiv 1308.3432)."""
    return values + (changed - values).detach()


def _along(numbers: Tensor, values: Tensor) -> Tensor:
    """Numbers (B,) shaped to be multiplied with values (B,...)."""
    return numbers.view(-1, *[1] * (values.ndim - 1))


def to_levels(images: Tensor, *, whole: bool = True) -> Tensor:
    """Images in [-1,1] as 8-bit values, rounded unless not `whole`; floats."""
    levels = images * 127.5 + 127.5
    return levels.round().clamp(0, 255) if whole else levels


def from_levels(levels: Tensor) -> Tensor:
    """8-bit values as images in [-1,1]."""
    return levels.float() / 127.5 - 1
