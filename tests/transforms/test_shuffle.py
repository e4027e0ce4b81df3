"""Channel shuffles against loops over images, blocks and channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfr.transforms.shuffle import draw_permutations, permute_channels, shuffle_blocks
from ppfr.util.errors import ShapeError


@given(batch=st.integers(1, 4), channels=st.integers(1, 9), seed=st.integers(0, 1000))
def test_permute_channels_moves_each_image_by_its_own_permutation(batch: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, 3, 2, generator=generator)
    permutations = draw_permutations(batch, channels, generator)
    moved = permute_channels(features, permutations)
    for image in range(batch):
        for channel in range(channels):
            assert torch.equal(moved[image, channel], features[image, int(permutations[image, channel])])
    assert torch.equal(permute_channels(moved, permutations.argsort(1)), features)


def test_permute_channels_takes_channels_last_and_passes_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 4, 4, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 5, 4, 4, generator=generator)
    permutations = draw_permutations(2, 5, generator)
    (permute_channels(features, permutations) * weights).sum().backward()
    assert torch.equal(features.grad, permute_channels(weights, permutations.argsort(1)))


def test_drawn_permutations_hold_every_channel_once_and_repeat_with_the_seed() -> None:
    drawn = draw_permutations(50, 16, torch.Generator().manual_seed(2))
    assert torch.equal(drawn.sort(1).values, torch.arange(16).expand(50, 16))
    assert len(torch.unique(drawn, dim=0)) == 50
    assert torch.equal(drawn, draw_permutations(50, 16, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_shuffle_blocks_permutes_each_block_by_its_own_permutation(side: int) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 6, 8, 12, generator=generator)
    permutations = draw_permutations(side * side, 6, generator)
    shuffled = shuffle_blocks(features, permutations)
    height, width = 8 // side, 12 // side
    for row in range(side):
        for column in range(side):
            block = (
                slice(None),
                slice(None),
                slice(row * height, (row + 1) * height),
                slice(column * width, (column + 1) * width),
            )
            order = permutations[row * side + column]
            assert torch.equal(shuffled[block], features[block][:, order])
    assert torch.equal(shuffle_blocks(shuffled, permutations.argsort(1)), features)


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        (torch.zeros(3, 6, dtype=torch.long), r"\(n \* n, C\)"),
        (torch.zeros(9, 6, dtype=torch.long), "8x8 do not divide into 3x3"),
        (torch.zeros(4, 5, dtype=torch.long), r"shape \(4, 5\); expected \(4, 6\)"),
        (torch.zeros(4, 6), "expected integers"),
    ],
)
def test_shuffle_blocks_refuses_what_does_not_fit(permutations: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shuffle_blocks(torch.zeros(1, 6, 8, 8), permutations)


def test_permute_channels_refuses_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"shape \(2, 6\); expected \(1, 6\)"):
        permute_channels(torch.zeros(1, 6, 8, 8), torch.zeros(2, 6, dtype=torch.long))
