"""Quantisation and pruning: bounds that hold for any values, and gradients that pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfr.transforms.quantise import dequantise, prune, quantise, straight_through
from ppfr.util.errors import ShapeError


def values(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


@given(bits=st.integers(2, 8), seed=st.integers(0, 100), scale=st.floats(1e-6, 1e6))
def test_no_value_within_reach_moves_by_more_than_half_a_step(bits: int, seed: int, scale: float) -> None:
    given_values = values(seed, scale).flatten(1)
    levels, steps = quantise(given_values, bits)
    largest = 2 ** (bits - 1) - 1
    assert levels.dtype == torch.int8
    assert int(levels.abs().max()) == largest
    reach = (largest + 0.5) * steps[:, None]
    within = given_values.abs() <= reach
    moved = (dequantise(levels, steps) - given_values).abs()
    assert (moved[within] <= (0.5001 * steps[:, None]).expand_as(moved)[within]).all()
    assert torch.equal(levels[~within], (largest * given_values.sign()).to(torch.int8)[~within])


@given(bits=st.integers(2, 8), seed=st.integers(0, 100))
def test_cutting_outliers_never_costs_more_than_reaching_to_them(bits: int, seed: int) -> None:
    given_values = values(seed).flatten(1)
    given_values[0, 0] *= 20
    largest = 2 ** (bits - 1) - 1
    far = given_values.abs().amax(1, keepdim=True) / largest
    plain = (given_values / far).round() * far
    found = dequantise(*quantise(given_values, bits))
    assert ((found - given_values).square().sum(1) <= (plain - given_values).square().sum(1) * 1.0001).all()


@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_pruning_removes_the_smallest(share: float, seed: int) -> None:
    given_values = values(seed)
    kept = prune(given_values, share)
    for before, after in zip(given_values.flatten(1), kept.flatten(1), strict=True):
        gone = after == 0
        assert int(gone.sum()) == int(share * 100)
        assert torch.equal(after[~gone], before[~gone])
        if 0 < int(gone.sum()) < 100:
            assert before[gone].abs().max() <= before[~gone].abs().min()


def test_empty_maps_stay_empty() -> None:
    levels, steps = quantise(torch.zeros(2, 3), 4)
    assert torch.equal(dequantise(levels, steps), torch.zeros(2, 3))


def test_gradients_pass_straight_through() -> None:
    leaf = values(1).requires_grad_()
    changed = dequantise(*quantise(prune(leaf, 0.5), 2))
    result = straight_through(leaf, changed)
    assert torch.allclose(result, changed, atol=1e-6)
    result.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_other_settings_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"bits is 9; expected 2\.\.8"):
        quantise(values(0), 9)
    with pytest.raises(ShapeError, match=r"share is 1\.5; expected 0\.\.1"):
        prune(values(0), 1.5)
