from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from ppfr.evaluation.metrics.statistics import (
    PairResampling,
    as_plain,
    bootstrap_mean,
    draw_counts,
    percentile_interval,
    rate_interval,
    wilson_interval,
)
from ppfr.util.errors import DataError


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (7, 50), (49, 50), (50, 50), (1, 1)])
def test_wilson_matches_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_counts_are_a_resample_each() -> None:
    counts = draw_counts(30, 400, np.random.default_rng(0))
    assert counts.shape == (400, 30)
    assert (counts.sum(axis=1) == 30).all()
    # a unit is missing from a resample with probability (1 - 1 / 30) ** 30
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.01)


def test_mean_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_mean(values, replicates=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert low < values.mean() < high


def test_people_are_resampled_with_all_their_values() -> None:
    # ten people whose 50 values are all alike: there are ten observations here, not 500
    people = np.repeat(np.arange(10), 50)
    values = np.random.default_rng(2).normal(size=10)[people]
    by_people = bootstrap_mean(values, people)
    by_value = bootstrap_mean(values)
    assert by_people.high - by_people.low > 5 * (by_value.high - by_value.low)
    once = bootstrap_mean(values[::50])
    assert by_people == pytest.approx(once)


def test_same_seed_same_interval() -> None:
    values = np.arange(20.0)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_no_leak_among_fifty_people_is_not_certainty() -> None:
    low, high = bootstrap_mean(np.zeros(50), rate=True)
    assert low == 0
    assert high == pytest.approx(0.0713, abs=1e-4)
    assert rate_interval(0.5, [0.4, 0.6], 50) == percentile_interval([0.4, 0.6])


def test_undefined_replicates_do_not_count() -> None:
    assert percentile_interval([np.nan, 0.25, 0.25]) == (0.25, 0.25)
    with pytest.raises(DataError, match="none of 2 bootstrap replicates"):
        percentile_interval([np.nan, np.nan])


def test_pair_weights_follow_the_people_drawn() -> None:
    first, second = np.array(["a", "a", "b", "c"]), np.array(["a", "b", "b", "a"])
    resampling = PairResampling(first == second, (first, second), replicates=200, seed=0)
    weights = resampling.map(lambda portion: portion.T).T
    assert weights.shape == (200, 4)
    a, b = weights[:, 0], weights[:, 2]
    np.testing.assert_array_equal(weights[:, 1], a * b)
    np.testing.assert_array_equal(weights[:, 3], a * (3 - a - b))
    assert resampling.genuine_units == 2
    assert "3 people" in resampling.description


def test_pairs_are_resampled_within_their_kind() -> None:
    truth = np.array([True, False, False, True, False])
    weights = PairResampling(truth, None, replicates=50, seed=0).map(lambda portion: portion.T).T
    assert (weights[:, truth].sum(axis=1) == 2).all()
    assert (weights[:, ~truth].sum(axis=1) == 3).all()


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.array([True, False] * 5)
    whole = PairResampling(truth, (np.arange(10), np.where(truth, np.arange(10), 10)), 40, 0)
    expected = whole.map(lambda portion: portion.T)
    monkeypatch.setattr("ppfr.evaluation.metrics.statistics._CHUNK", 30)
    np.testing.assert_array_equal(whole.map(lambda portion: portion.T), expected)


def test_refusals() -> None:
    with pytest.raises(DataError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)
    with pytest.raises(DataError, match="cannot bootstrap 0 units"):
        draw_counts(0, 10, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"\(3,\) values for \(2,\) groups"):
        bootstrap_mean([1, 2, 3], ["a", "b"])
    with pytest.raises(DataError, match="groups must agree with same"):
        PairResampling(np.array([True]), (["a"], ["b"]), 10, 0)


def test_plain_values_survive_json() -> None:
    value = {0.001: np.float32(0.5), "n": (np.int64(3), np.nan), 1: np.array([True])}
    assert json.loads(json.dumps(as_plain(value))) == {"0.001": 0.5, "n": [3, None], "1": [True]}
