"""Removing frequencies without the channels against the plain way with all of them, and against recorded numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppfr.transforms import block_dct, frequency_matrix, inverse_block_dct, remove_frequencies, round_trip_matrix
from ppfr.util.errors import ShapeError


def plain(images: Tensor, removed: set[int], *, raw_range: bool) -> Tensor:
    kept = [frequency for frequency in range(64) if frequency not in removed]
    return inverse_block_dct(block_dct(images, kept, raw_range=raw_range), kept, clamp=False)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_the_server_image_of_privacyhfr_is_the_recorded_one(golden: Callable[[str], Any]) -> None:
    recorded = golden("bdct128_hfr.npz")
    images = torch.from_numpy(recorded["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = remove_frequencies(images, raw_range=True)
    image, channel, y, x = torch.from_numpy(recorded["ipos"]).long().T
    assert torch.allclose(found[image, channel, y, x], torch.from_numpy(recorded["server_image"]), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(
    removed=st.sets(st.integers(0, 63), min_size=0, max_size=5),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    raw_range=st.booleans(),
)
def test_it_equals_the_way_through_the_channels(removed: set[int], height: int, width: int, raw_range: bool) -> None:
    images = drawn(2, 3, height, width)
    found = remove_frequencies(images, removed, raw_range=raw_range)
    assert torch.allclose(found, plain(images, removed, raw_range=raw_range), rtol=0, atol=1e-10)


def test_its_derivative_is_that_of_the_way_through_the_channels() -> None:
    probe = drawn(1, 3, 12, 16, seed=1)
    gradients = []
    for function in (remove_frequencies, lambda images: plain(images, {0}, raw_range=False)):
        images = drawn(1, 3, 12, 16).requires_grad_()
        gradients.append(torch.autograd.grad((function(images) * probe).sum(), images)[0])
    assert torch.allclose(*gradients, rtol=0, atol=1e-10)


def test_a_flat_image_becomes_mid_grey() -> None:
    found = remove_frequencies(torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64))
    assert torch.allclose(found, torch.full_like(found, 128 / 255), rtol=0, atol=1e-12)


def test_the_round_trip_of_one_line() -> None:
    line = drawn(24)
    assert torch.allclose(round_trip_matrix(24, 0) @ line, (frequency_matrix(24, 0) @ line) / 8**0.5)
    whole = sum(round_trip_matrix(24, frequency) @ line for frequency in range(8))
    assert torch.allclose(round_trip_matrix(24) @ line, whole)


def test_half_precision_is_computed_in_float32() -> None:
    images = drawn(1, 3, 16, 16).half()
    assert torch.equal(remove_frequencies(images), remove_frequencies(images.float()))


@pytest.mark.parametrize(
    ("images", "frequencies", "message"),
    [
        (torch.zeros(1, 3, 7, 16), [0], r"shape \(1, 3, 7, 16\); expected floats \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 16, 16), [0], r"shape \(1, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [0], "images are torch.uint8"),
        (torch.zeros(1, 3, 16, 16), [3, 64, -1], r"frequencies \[-1, 64\] are out of range"),
    ],
)
def test_bad_input_is_refused(images: Tensor, frequencies: list[int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        remove_frequencies(images, frequencies)
