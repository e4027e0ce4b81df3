"""Laplace noise: its distribution, and whom its draws obey."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from ppfr.transforms.noise import laplace


def test_draws_are_laplace() -> None:
    drawn = laplace((200_000,), torch.Generator().manual_seed(3))
    # the statistic of 200,000 true draws exceeds 0.005 once in ten thousand runs; the seed is fixed
    assert stats.kstest(drawn.double().numpy(), "laplace").statistic < 0.005
    assert bool(torch.isfinite(drawn).all())


def test_the_largest_draw_is_finite(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert float(laplace((1,), torch.Generator())) == pytest.approx(-24 * math.log(2))


def test_draws_follow_the_generator() -> None:
    torch.manual_seed(0)
    first = laplace((5,), torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    assert torch.equal(first, laplace((5,), torch.Generator().manual_seed(1)))
