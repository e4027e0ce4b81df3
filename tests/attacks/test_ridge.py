"""Linear maps in closed form, against the normal equations and what noise must do to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppfr.attacks.learned.ridge import fit_map, unit


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_linear_relation_is_found() -> None:
    known, weights = draw(200, 8, seed=1) + 3, draw(8, 5, seed=2)
    found = fit_map(known, known @ weights - 7)
    fresh = draw(10, 8, seed=3) + 3
    # the least strength bends it by a thousandth
    assert torch.allclose(found(fresh), fresh @ weights - 7, atol=0.05)


def test_what_is_unrelated_gives_the_mean() -> None:
    found = fit_map(draw(64, 30, seed=1), draw(64, 4, seed=2) + 5)
    spread = (found(draw(50, 30, seed=3)) - 5).square().mean().sqrt()
    assert spread < 0.3


def test_between_alike_sides_few_rows_leave_values_as_they_are() -> None:
    known = draw(20, 40, seed=1)
    fresh = draw(30, 40, seed=3)
    found = fit_map(known, known + 0.1 * draw(20, 40, seed=2))
    error = (found(fresh) - fresh).square().mean().sqrt()
    assert error < 0.2


def test_it_is_the_solution_of_the_normal_equations() -> None:
    known, wanted = draw(40, 6, seed=1).double(), draw(40, 3, seed=2).double()
    found = fit_map(known, wanted)
    centred = known - known.mean(0)
    left = centred.T @ centred
    right = centred.T @ (wanted - wanted.mean(0))
    damping = (right - left @ found.weights) / found.weights
    assert torch.allclose(damping, damping.mean().expand_as(damping), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_constant_and_few_rows_give_finite_maps(rows: int) -> None:
    found = fit_map(torch.ones(rows, 4), torch.arange(rows * 3.0).reshape(rows, 3))
    assert torch.allclose(found(torch.ones(1, 4)), found.offset)
    assert bool(torch.isfinite(found(torch.full((1, 4), 2.0))).all())


def test_unit_templates_have_length_one_and_nothing_stays_nothing() -> None:
    lengths = unit(torch.tensor([[3, 4], [0, 0]])).norm(dim=1)
    assert lengths.tolist() == [1.0, 0.0]
