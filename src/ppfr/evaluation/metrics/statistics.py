"""Intervals: the bootstrap over people that all figures share, and Wilson's interval for its edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from ppfr.util.errors import DataError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
People = tuple[npt.ArrayLike, npt.ArrayLike]
"""Who is on the first and who on the second image of each pair, (P,) labels each."""

REPLICATES = 1000
CONFIDENCE = 0.95
# weights held at once while bootstrapping pairs: 32 MB
_CHUNK = 1 << 22


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def group_index(groups: npt.ArrayLike) -> tuple[npt.NDArray[np.intp], int]:
    """Number the distinct labels (N,) from 0 in sorted order: indices (N,) and how many there are.

    Raises DataError when `groups` is not one-dimensional or is empty.
    """
    labels = np.asarray(groups)
    if labels.ndim != 1 or not labels.size:
        raise DataError(f"groups have shape {labels.shape}; expected one label for each value, (N,) with N > 0")
    distinct, index = np.unique(labels, return_inverse=True)
    return index, len(distinct)


def draw_counts(units: int, replicates: int, rng: np.random.Generator) -> Floats:
    """How often each of `units` is drawn when as many are drawn with replacement: (replicates, units).

    Each row sums to `units` (Efron, Annals of Statistics 1979). Raises DataError when either is below 1.
    """
    if units < 1 or replicates < 1:
        raise DataError(f"cannot bootstrap {units} units {replicates} times; expected at least 1 of each")
    drawn = rng.integers(units, size=(replicates, units))
    drawn += units * np.arange(replicates)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=replicates * units)
    return counts.reshape(replicates, units).astype(np.float64)


def percentile_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The central `confidence` share of bootstrap replicates (R,).

    Replicates for which the statistic is undefined (NaN) do not count. Raises DataError when all are.
    """
    replicates = np.asarray(values, np.float64)
    defined = replicates[~np.isnan(replicates)]
    if not defined.size:
        raise DataError(f"none of {replicates.size} bootstrap replicates is defined; use more data")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def wilson_interval(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion of independent trials (Wilson, JASA 1927); never of zero width.

    Raises DataError unless 0 <= successes <= trials and trials > 0.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise DataError(f"{successes} successes in {trials} trials; expected 0 <= successes <= trials, trials > 0")
    z = float(ndtri((1 + confidence) / 2))
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # at the edges the bound is the edge itself, which rounding may miss
    return Interval(
        0.0 if successes == 0 else middle - half,
        1.0 if successes == trials else middle + half,
    )


def rate_interval(rate: float, replicates: npt.ArrayLike, units: int, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval of a rate in [0, 1]; Wilson's over `units` where the rate is exactly 0 or 1.

    There all replicates agree and the bootstrap would claim certainty: no leak among 50 people does not show
    that nobody's face leaks, but that at most 7 % of people's do.
    """
    if rate in (0.0, 1.0):
        return wilson_interval(rate * units, units, confidence)
    return percentile_interval(replicates, confidence)


def bootstrap_mean(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    rate: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Bootstrap interval of the mean of `values` (N,), drawing people with all their values.

    `groups` (N,) says whose value each is; without it each value is its own unit. With `rate` the values are
    shares in [0, 1] and the edges are treated as in `rate_interval`. Raises DataError for shapes that do not
    belong together.
    """
    data = np.asarray(values, np.float64)
    index, units = group_index(np.arange(data.size) if groups is None else groups)
    if data.shape != index.shape:
        raise DataError(f"{data.shape} values for {index.shape} groups; expected (N,) of each")
    sums = np.bincount(index, data, units)
    sizes = np.bincount(index, minlength=units)
    counts = draw_counts(units, replicates, np.random.default_rng(seed))
    means = (counts @ sums) / (counts @ sizes)
    if rate:
        return rate_interval(float(data.mean()), means, units, confidence)
    return percentile_interval(means, confidence)


class PairResampling:
    """Bootstrap of statistics of pairs, by people where they are known.

    People are drawn with replacement; a genuine pair counts as often as its person was drawn, an impostor
    pair as often as its two people were, multiplied (the vertex bootstrap of Snijders and Borgatti,
    Connections 1999, less the pairs of a person with their own copy). Pairs are drawn within their kind.
    """

    def __init__(self, truth: Bools, groups: People | None, replicates: int, seed: int) -> None:
        self.truth = truth
        self.replicates = replicates
        self.seed = seed
        self._people: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None
        if groups is None:
            self.units = len(truth)
            self.genuine_units = int(truth.sum())
            self.description = self._describe("pairs")
            return
        first, second = (np.asarray(side) for side in groups)
        if first.shape != truth.shape or second.shape != truth.shape:
            raise DataError(f"groups have shapes {first.shape}, {second.shape}; expected two of {truth.shape}")
        index, self.units = group_index(np.concatenate([first, second]))
        a, b = np.split(index, 2)
        wrong = np.flatnonzero((a == b) != truth)
        if wrong.size:
            raise DataError(
                f"pair {wrong[0]} is of '{first[wrong[0]]}' and '{second[wrong[0]]}' but same is "
                f"{bool(truth[wrong[0]])}; groups must agree with same"
            )
        self._people = a, b
        self.genuine_units = len(np.unique(a[truth]))
        self.description = self._describe("people")

    def _describe(self, units: str) -> str:
        how = f"95 % percentile bootstrap over {self.units} {units}"
        return f"{how}, {self.replicates} replicates, seed {self.seed}; Wilson at rates of 0 and 1"

    def map(self, statistics: Callable[[Floats], Floats]) -> Floats:
        """Statistics (S, replicates) of all replicates, computed in portions of weights (R, P)."""
        return np.concatenate([statistics(weights) for weights in self._weights()], axis=1)

    def _weights(self) -> Iterator[Floats]:
        rng = np.random.default_rng(self.seed)
        portion = max(1, _CHUNK // len(self.truth))
        for start in range(0, self.replicates, portion):
            yield self._draw(min(portion, self.replicates - start), rng)

    def _draw(self, replicates: int, rng: np.random.Generator) -> Floats:
        if self._people is not None:
            first, second = self._people
            drawn = draw_counts(self.units, replicates, rng)
            weights: Floats = drawn[:, first] * np.where(self.truth, 1, drawn[:, second])
            return weights
        weights = np.empty((replicates, len(self.truth)))
        for kind in (self.truth, ~self.truth):
            if kind.any():
                weights[:, kind] = draw_counts(int(kind.sum()), replicates, rng)
        return weights


def as_plain(value: Any) -> Any:
    """NumPy values, tuples and mappings as what `json.dumps` takes; NaN and infinity become None."""
    if isinstance(value, dict):
        return {_key(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(key: Any) -> str:
    return f"{key:g}" if isinstance(key, float) else str(key)
