"""How well scores distinguish mated from non-mated pairs of two deployments: linkability by ISO/IEC 30136."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ppfr.evaluation.metrics.statistics import Bools, Floats, Interval, PairResampling, People, percentile_interval
from ppfr.util.errors import DataError

# as many bins as the reference implementation takes, but never so few that nothing can be distinguished
_SCORES_PER_BIN, _FEWEST_BINS, _MOST_BINS = 10, 8, 100
_SHUFFLES = 20


def d_sys(mated: npt.ArrayLike, non_mated: npt.ArrayLike, *, omega: float = 1.0, bins: int | None = None) -> float:
    """Global linkability D_sys in [0,1] of scores of mated pairs (M,) and non-mated pairs (N,).

    0: the two kinds of pairs score alike, templates cannot be linked; 1: their scores never meet, each can be. With
    LR(s) = p(s|mated) / p(s|non-mated), a score s links with D(s) = 2 omega LR / (1 + omega LR) - 1, or 0 where that is
    negative, and D_sys is the integral of p(s|mated) D(s) ds (Gomez-Barrero et al., General Framework to Evaluate
    Unlinkability in Biometric Template Protection Systems, IEEE TIFS 2018, section IV; ISO/IEC 30136). `omega` is the
    prior odds of a mated pair. Densities are histograms of `bins` equal bins over the range of all scores, by default
    one for ten mated scores and 8 to 100. Ours departs from the reference implementation in that the integral is the
    sum over bins instead of a trapezoidal rule. Few scores make it too large: see `chance_d_sys`. Raises DataError for
    no scores and for values that are not finite.
    """
    first, second = (np.asarray(scores, np.float64).ravel() for scores in (mated, non_mated))
    scores, truth = np.concatenate([first, second]), np.arange(first.size + second.size) < first.size
    return float(_of_counts(_counts(np.ones((1, len(scores))), *_bins(scores, truth, bins), truth), omega)[0])


def d_sys_interval(scores: Floats, truth: Bools, people: People, *, omega: float = 1.0, seed: int = 0) -> Interval:
    """95 % bootstrap interval over people of D_sys, for scores (P,) of pairs that are mated where `truth` (P,) says so.

    `people` are who is on each side of the pairs. Drawing people repeats scores, which makes D_sys larger; so the
    replicates are moved until their mean is the measured value.
    """
    index, count = _bins(scores, truth, None)
    value = _of_counts(_counts(np.ones((1, len(scores))), index, count, truth), omega)[0]
    resampling = PairResampling(truth, people, 1000, seed)
    replicates = resampling.map(lambda weights: _of_counts(_counts(weights, index, count, truth), omega)[None])[0]
    low, high = percentile_interval(replicates + value - np.nanmean(replicates))
    return Interval(min(max(low, 0.0), value), max(min(high, 1.0), value))


def chance_d_sys(scores: Floats, people: People, *, omega: float = 1.0, seed: int = 0) -> float:
    """What D_sys is, on average, when nothing links: pairs of different people, some of whom are called one person.

    `scores` (P,) are of pairs between `people`, mated pairs among them; the latter are left out. Raises DataError when
    there are fewer than three people.
    """
    first, second = (np.asarray(side) for side in people)
    names = np.unique(np.concatenate([first, second]))
    if len(names) < 3:
        raise DataError(f"{len(names)} people; expected at least 3, so that each can be paired with another one")
    rng = np.random.default_rng(seed)
    others = first != second
    left, right = (np.searchsorted(names, side[others]) for side in (first, second))
    found = []
    for _ in range(_SHUFFLES):
        circle = rng.permutation(len(names))
        following = np.empty_like(circle)
        following[circle] = np.roll(circle, -1)
        called = following[left] == right
        found.append(d_sys(scores[others][called], scores[others][~called], omega=omega))
    return float(np.mean(found))


def _bins(scores: Floats, truth: Bools, bins: int | None) -> tuple[npt.NDArray[np.intp], int]:
    """The bin (P,) of each score, and how many bins there are."""
    mated = int(truth.sum())
    if not mated or mated == len(truth):
        raise DataError(f"{mated} mated and {len(truth) - mated} non-mated scores; expected some of each")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    count = bins or min(max(mated // _SCORES_PER_BIN, _FEWEST_BINS), _MOST_BINS)
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return np.zeros(len(scores), np.intp), 1
    return np.minimum(((scores - low) / (high - low) * count).astype(np.intp), count - 1), count


def _counts(weights: Floats, index: npt.NDArray[np.intp], count: int, truth: Bools) -> tuple[Floats, Floats]:
    """Weights (R,P) of pairs summed up by bin, (R,bins) of the mated and of the non-mated."""
    rows = np.arange(len(weights))[:, None] * 2 * count
    places = rows + index + count * truth
    summed = np.asarray(np.bincount(places.ravel(), weights.ravel(), 2 * count * len(weights)), np.float64)
    summed = summed.reshape(len(weights), 2, count)
    return summed[:, 1], summed[:, 0]


def _of_counts(counts: tuple[Floats, Floats], omega: float) -> Floats:
    """D_sys (R,) of histograms; NaN where one is empty."""
    with np.errstate(invalid="ignore"):
        mated, non_mated = (part / part.sum(1, keepdims=True) for part in counts)
        # 2 r / (1 + r) - 1 with r = omega m / n, written so that n may be 0
        linkable = np.maximum(omega * mated - non_mated, 0) / (omega * mated + non_mated)
    result: Floats = np.where(mated > 0, mated * linkable, np.where(np.isnan(mated), np.nan, 0.0)).sum(1)
    return result


__all__ = ["chance_d_sys", "d_sys", "d_sys_interval"]
