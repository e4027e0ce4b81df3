"""Channel shuffles: one permutation for each image, or one for each block of a map."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.distributed.global_batch import rand
from ppfr.util.errors import ShapeError


def draw_permutations(
    count: int, channels: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw `count` independent, uniform permutations of `channels` channels: int64 (count, channels)."""
    return rand((count, channels), generator, device).argsort(1)


def permute_channels(features: Tensor, permutations: Tensor) -> Tensor:
    """Reorder the channels of each image by a permutation of its own: out[b, c] = in[b, permutations[b, c]].

    `features` are (B,C,...), `permutations` integers (B,C) in 0..C-1; differentiable. Raises ShapeError for other
    shapes and types.
    """
    _check(permutations, features.shape[:2])
    batch, channels = permutations.shape
    rows = permutations.long() + torch.arange(0, batch * channels, channels, device=permutations.device)[:, None]
    # whole planes move, forwards and backwards, where indexing by two tensors would accumulate value by value
    return features.flatten(0, 1).index_select(0, rows.flatten()).view(features.shape)


def shuffle_blocks(features: Tensor, permutations: Tensor) -> Tensor:
    """Reorder the channels of maps within each block of an n x n grid: out[c] = in[permutations[block, c]].

    `features` are (B,C,H,W) with H and W multiples of n; `permutations` integers (n*n,C) in 0..C-1, the same for all
    images, blocks in row-major order. Differentiable. Raises ShapeError. Source: the channel shuffle of PRO-Face C
    (IEEE TIFS 2024).
    """
    side = round(len(permutations) ** 0.5)
    if features.ndim != 4 or side < 1 or side * side != len(permutations):
        raise ShapeError(
            f"features have shape {tuple(features.shape)} and permutations {tuple(permutations.shape)}; expected "
            "(B, C, H, W) and (n * n, C)"
        )
    batch, channels, height, width = features.shape
    if height % side or width % side:
        raise ShapeError(f"maps of {height}x{width} do not divide into {side}x{side} equal blocks")
    _check(permutations, (side * side, channels))
    grid = features.reshape(batch, channels, side, height // side, side, width // side)
    # blocks in front, so that each is an "image" with its own permutation
    blocks = grid.permute(2, 4, 1, 0, 3, 5).flatten(0, 1)
    shuffled = permute_channels(blocks, permutations).view(side, side, *blocks.shape[1:])
    return shuffled.permute(3, 2, 0, 4, 1, 5).reshape(features.shape)


def _check(permutations: Tensor, shape: tuple[int, ...]) -> None:
    if permutations.ndim != 2 or tuple(permutations.shape) != tuple(shape):
        raise ShapeError(f"permutations have shape {tuple(permutations.shape)}; expected {tuple(shape)}")
    if permutations.is_floating_point() or permutations.dtype == torch.bool:
        raise ShapeError(f"permutations have dtype {permutations.dtype}; expected integers")
