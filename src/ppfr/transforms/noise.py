"""Noise of local differential privacy."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.distributed.global_batch import rand

# the float32 below 1: a draw of exactly 1 would make infinite noise
_LARGEST = 1 - 2.0**-24


def laplace(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    """Draw Laplace noise of location 0 and scale 1, float32 on the generator's device.

    By inverting the distribution function. Floating-point Laplace noise has gaps that an attacker who sees exact values
    can use (Mironov, CCS 2012); its tails end at 16.6 here.
    """
    uniform = rand(shape, generator).mul_(2).sub_(1)
    return uniform.abs().clamp_max_(_LARGEST).neg_().log1p_().neg_().copysign_(uniform)
