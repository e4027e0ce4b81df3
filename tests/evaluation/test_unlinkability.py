"""D_sys against plain integration, loops and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from ppfr.evaluation.metrics.unlinkability import chance_d_sys, d_sys, d_sys_interval
from ppfr.util.errors import DataError


def test_alike_distributions_do_not_link_and_disjoint_ones_do() -> None:
    scores = np.linspace(0, 1, 2000)
    assert d_sys(scores, scores) == 0
    assert d_sys(scores + 1.5, scores) == d_sys(scores - 1.5, scores) == 1
    assert d_sys(np.ones(30), np.ones(500)) == 0


@pytest.mark.parametrize("omega", [1.0, 0.2])
@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (2.0, 1.0), (4.0, 0.5)])
def test_gaussian_scores_agree_with_the_integral(shift: float, scale: float, omega: float) -> None:
    def integrand(score: float) -> float:
        mated, other = gauss(score, shift, scale), gauss(score, 0.0, 1.0)
        ratio = omega * mated / other
        return mated * max(0.0, 2 * ratio / (1 + ratio) - 1)

    expected, _ = quad(integrand, -8, 10, limit=500)
    rng = np.random.default_rng(0)
    found = d_sys(rng.normal(shift, scale, 200_000), rng.normal(0, 1, 200_000), omega=omega)
    assert found == pytest.approx(expected, abs=0.02)


def gauss(score: float, mean: float, deviation: float) -> float:
    return math.exp(-(((score - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


def slow(mated: list[float], non_mated: list[float], bins: int, omega: float) -> float:
    """The definition, bin by bin."""
    low, high = min(mated + non_mated), max(mated + non_mated)
    width, total = (high - low) / bins, 0.0
    for number in range(bins):
        edges = low + number * width, math.inf if number == bins - 1 else low + (number + 1) * width
        share, other = (
            sum(edges[0] <= score < edges[1] for score in scores) / len(scores) for scores in (mated, non_mated)
        )
        if share and not other:
            total += share
        elif share:
            ratio = omega * share / other
            total += share * max(0.0, 2 * ratio / (1 + ratio) - 1)
    return total


@pytest.mark.parametrize("omega", [1.0, 0.5])
def test_it_is_the_definition_summed_over_bins(omega: float) -> None:
    rng = np.random.default_rng(3)
    mated, non_mated = rng.normal(1, 1, 60), rng.normal(0, 1, 300)
    assert d_sys(mated, non_mated, bins=9, omega=omega) == pytest.approx(
        slow(mated.tolist(), non_mated.tolist(), 9, omega), abs=1e-12
    )


def grid(people: int, photos: int, link: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a probe of each person with some photos of all; mated ones lie `link` deviations higher."""
    rng = np.random.default_rng(seed)
    first, second = (part.ravel() for part in np.meshgrid(np.arange(people), np.repeat(np.arange(people), photos)))
    return rng.normal(0, 1, len(first)) + link * (first == second), first, second


def test_chance_is_what_unlinkable_scores_give_and_linkable_ones_lie_above() -> None:
    scores, first, second = grid(40, 3, 0.0, 1)
    same = first == second
    chance = chance_d_sys(scores, (first, second))
    interval = d_sys_interval(scores, same, (first, second))
    assert interval.low <= chance <= interval.high and chance < 0.2
    scores, *_ = grid(40, 3, 3.0, 2)
    interval = d_sys_interval(scores, same, (first, second))
    assert interval.low > chance_d_sys(scores, (first, second)) + 0.2


def test_the_interval_holds_the_value_and_narrows_with_people() -> None:
    widths = []
    for people in (12, 80):
        scores, first, second = grid(people, 2, 1.5, people)
        same = first == second
        interval = d_sys_interval(scores, same, (first, second), seed=4)
        assert 0 <= interval.low <= d_sys(scores[same], scores[~same]) <= interval.high <= 1
        assert interval == d_sys_interval(scores, same, (first, second), seed=4)
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.7 * widths[0]


def test_scores_that_measure_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="0 mated and 3 non-mated scores"):
        d_sys([], [1, 2, 3])
    with pytest.raises(DataError, match="1 of 5 scores are not finite"):
        d_sys([1, math.nan], [1, 2, 3])
    with pytest.raises(DataError, match="2 people; expected at least 3"):
        chance_d_sys(np.zeros(4), (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])))
