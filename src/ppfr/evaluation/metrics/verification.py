"""Verification: are two images of one person? Accuracy over folds, ROC figures, and how sure we are of them.

Everything here is arithmetic on embeddings or scores; `ppfr.evaluation.evaluate` computes those from a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ppfr.evaluation.metrics.roc import FARS, RocFigures, check_pairs, roc_figures
from ppfr.evaluation.metrics.statistics import (
    REPLICATES,
    Bools,
    Floats,
    PairResampling,
    People,
    percentile_interval,
    rate_interval,
)
from ppfr.util.errors import DataError

Embeddings = npt.ArrayLike | torch.Tensor

FOLDS = 10
# the grid of TFace and InsightFace; squared distances of unit vectors end at 4
THRESHOLDS: Floats = np.arange(0, 4, 0.01)
THRESHOLDS.flags.writeable = False


@dataclass(frozen=True, kw_only=True)
class Verification(RocFigures):
    """How well genuine and impostor pairs are distinguished: the figures of the ROC, and the accuracy over folds.

    `accuracy` is the mean over folds, `accuracy_std` the (population) standard deviation over them,
    `threshold` the mean of the folds' thresholds: a squared distance, below which a pair counts as one
    person (of unit vectors: cosine above 1 - threshold / 2).
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_std: float
    threshold: float
    threshold_low: float
    threshold_high: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]

    def __str__(self) -> str:
        accuracy = f"accuracy {self.accuracy:.2%} [{self.accuracy_low:.2%}, {self.accuracy_high:.2%}]"
        return f"{accuracy}, {super().__str__()}"


def verification(
    first: Embeddings,
    second: Embeddings,
    same: npt.ArrayLike,
    *,
    folds: int = FOLDS,
    thresholds: npt.ArrayLike = THRESHOLDS,
    fars: Sequence[float] = FARS,
    normalise: bool = True,
    groups: People | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Verification:
    """Verify pairs of embeddings `first`, `second` (P, D), of one person where `same` (P,) is true.

    Embeddings are scaled to unit length unless `normalise` is false; then the default `thresholds` (squared
    distances 0, 0.01, .. 3.99) fit unit vectors only. Folds are contiguous, see `kfold`. With `groups`, the
    people (P,) of `first` and of `second`, the intervals come from resampling people, which is what a new
    test would draw again; without, from resampling pairs, which is too narrow when people occur in many
    pairs. Raises DataError for shapes that do not belong together, for values that are not finite, and for
    groups that contradict `same`.
    """
    distances = squared_distances(first, second, normalise=normalise)
    return verify_distances(
        distances,
        same,
        folds=folds,
        thresholds=thresholds,
        fars=fars,
        groups=groups,
        replicates=replicates,
        seed=seed,
    )


def verify_distances(
    distances: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    folds: int = FOLDS,
    thresholds: npt.ArrayLike = THRESHOLDS,
    fars: Sequence[float] = FARS,
    groups: People | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Verification:
    """`verification` of pairs whose distances (P,) are known; `thresholds` must suit the distance."""
    values, truth = check_pairs(distances, same)
    grid = _grid(thresholds)
    judged = kfold(values, truth, folds=folds, thresholds=grid)
    accuracy = float(judged.accuracies.mean())
    resampling = PairResampling(truth, groups, replicates, seed)
    sizes = np.array([part.stop - part.start for part in _parts(len(truth), folds)])
    share = np.repeat(1 / (folds * sizes), sizes)

    def statistics(weights: Floats) -> Floats:
        accuracies = _weighted_accuracy(judged.verdicts == truth, truth, share, weights)
        best = _tally(values, truth, folds, grid, _balanced(weights, truth)).best()
        return np.stack([accuracies, np.where(np.isnan(accuracies), np.nan, grid[best].mean(axis=1))])

    accuracies, chosen = resampling.map(statistics)
    accuracy_interval = rate_interval(accuracy, accuracies, resampling.units)
    threshold_interval = percentile_interval(chosen)
    figures = roc_figures(-values, truth, fars=fars, groups=groups, replicates=replicates, seed=seed)
    return Verification(
        **vars(figures),
        accuracy=accuracy,
        accuracy_low=accuracy_interval.low,
        accuracy_high=accuracy_interval.high,
        accuracy_std=float(judged.accuracies.std()),
        threshold=float(judged.thresholds.mean()),
        threshold_low=threshold_interval.low,
        threshold_high=threshold_interval.high,
        fold_accuracies=tuple(judged.accuracies.tolist()),
        fold_thresholds=tuple(judged.thresholds.tolist()),
    )


# ------------------------------------------------------------------------------------------------ input


def squared_distances(first: Embeddings, second: Embeddings, *, normalise: bool = True) -> Floats:
    """Squared Euclidean distances (P,) in float64 of embeddings (P, D), scaled to unit length by default.

    Raises DataError for shapes that differ, values that are not finite, and zero vectors that have no
    direction.
    """
    a, b = as_embeddings(first, "first"), as_embeddings(second, "second")
    if a.shape != b.shape:
        raise DataError(f"'first' has shape {a.shape}, 'second' {b.shape}; expected (P, D) of both")
    if normalise:
        a, b = unit_rows(a, "first"), unit_rows(b, "second")
    distances: Floats = np.square(a - b).sum(axis=1)
    return distances


def as_embeddings(values: Embeddings, name: str = "embeddings") -> Floats:
    """Embeddings as float64 (N, D); raises DataError naming `name` for another shape or values not finite."""
    plain = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    array = np.asarray(plain, np.float64)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{name!r} has shape {array.shape}; expected embeddings (N, D)")
    broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if broken.size:
        raise DataError(
            f"{name!r} has {broken.size} rows with NaN or infinity, the first is row {broken[0]}; "
            "a diverged network gives such embeddings"
        )
    return array


def unit_rows(embeddings: Floats, name: str = "embeddings") -> Floats:
    """Rows (N, D) scaled to unit length; raises DataError naming the first row that is zero."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not length.all():
        raise DataError(f"{name!r} row {int(np.argmin(length))} is zero; expected embeddings with a direction")
    scaled: Floats = embeddings / length
    return scaled


def _grid(thresholds: npt.ArrayLike) -> Floats:
    grid = np.asarray(thresholds, np.float64)
    if grid.ndim != 1 or not grid.size or not (np.diff(grid) > 0).all():
        raise DataError(f"thresholds have shape {grid.shape}; expected a rising list of numbers")
    return grid


# ------------------------------------------------------------------------------------------------ folds


@dataclass(frozen=True)
class Folds:
    """The result of k-fold verification: per fold accuracy and threshold (K,), and the mean ROC over the folds.

    `verdicts` (P,) are true for pairs that their fold's threshold takes for one person. `tpr`, `fpr` (T,) are means
    over the folds of the rates in the test fold at every threshold of the grid (0 in a fold without such
    pairs).
    """

    accuracies: Floats
    thresholds: Floats
    verdicts: Bools
    tpr: Floats
    fpr: Floats


def kfold(
    distances: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    folds: int = FOLDS,
    thresholds: npt.ArrayLike = THRESHOLDS,
) -> Folds:
    """Judge each contiguous fold of pairs by the threshold that is best on the others.

    A pair is taken for one person when its distance (P,) is below the threshold (strictly); of equally good
    thresholds the first of `thresholds` (T,) counts. With squared distances this is the protocol of Huang
    et al. (LFW, 2007) as TFace and InsightFace compute it. Raises DataError when there are fewer pairs than
    folds.
    """
    values, truth = check_pairs(distances, same)
    grid = _grid(thresholds)
    tally = _tally(values, truth, folds, grid, np.ones((1, len(values))))
    best = tally.best()
    correct = np.take_along_axis(tally.correct(), best[:, :, None], axis=2)[0, :, 0]
    sizes = (tally.genuine + tally.impostor)[0]
    return Folds(
        accuracies=correct / sizes,
        thresholds=grid[best[0]],
        verdicts=values < np.repeat(grid[best[0]], sizes.astype(np.intp)),
        tpr=(tally.genuine_accepted[0] / np.maximum(tally.genuine[0], 1)[:, None]).mean(axis=0),
        fpr=(tally.impostor_accepted[0] / np.maximum(tally.impostor[0], 1)[:, None]).mean(axis=0),
    )


def _parts(pairs: int, folds: int) -> list[slice]:
    """Contiguous folds; the first ones are longer by one where the division leaves a rest."""
    if not 2 <= folds <= pairs:
        raise DataError(f"{folds} folds of {pairs} pairs; expected between 2 and as many folds as pairs")
    ends = np.cumsum([pairs // folds + (fold < pairs % folds) for fold in range(folds)]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class _Tally(NamedTuple):
    """Weight of accepted pairs (R, K, T) and of all pairs (R, K), by replicate, fold and threshold."""

    genuine_accepted: Floats
    genuine: Floats
    impostor_accepted: Floats
    impostor: Floats

    def correct(self) -> Floats:
        """Weight (R, K, T) of the pairs judged rightly."""
        return self.genuine_accepted + (self.impostor[:, :, None] - self.impostor_accepted)

    def best(self) -> npt.NDArray[np.intp]:
        """Index (R, K) of the first threshold that is best on the other folds."""
        correct = self.correct()
        others: Floats = correct.sum(axis=1, keepdims=True) - correct
        best: npt.NDArray[np.intp] = others.argmax(axis=2)
        return best


def _tally(values: Floats, truth: Bools, folds: int, grid: Floats, weights: Floats) -> _Tally:
    parts = _parts(len(values), folds)
    counts: list[Floats] = []
    for kind in (truth, ~truth):
        members = [np.arange(part.start, part.stop)[kind[part]] for part in parts]
        counts.append(np.stack([_accepted(values[rows], weights[:, rows], grid) for rows in members], axis=1))
        counts.append(np.stack([weights[:, rows].sum(axis=1) for rows in members], axis=1))
    return _Tally(*counts)


def _accepted(values: Floats, weights: Floats, grid: Floats) -> Floats:
    """Weight (R, T) of the values (n,) below each threshold, given weights (R, n)."""
    order = np.argsort(values, kind="stable")
    below = np.searchsorted(values[order], grid, side="left")
    running = np.zeros((len(weights), len(values) + 1))
    np.cumsum(weights[:, order], axis=1, out=running[:, 1:])
    return running[:, below]


def _balanced(weights: Floats, truth: Bools) -> Floats:
    """Weights (R, P) scaled so that both kinds of pair weigh what they do in the sample."""
    balanced = weights.copy()
    for kind in (truth, ~truth):
        drawn = np.maximum(weights[:, kind].sum(axis=1, keepdims=True), 1)
        balanced[:, kind] *= kind.sum() / drawn
    return balanced


def _weighted_accuracy(correct: Bools, truth: Bools, share: Floats, weights: Floats) -> Floats:
    """Accuracy (R,) of judged pairs under weights (R, P), NaN for a replicate that lacks a kind of pair.

    `share` (P,) is each pair's part in the mean over folds. The mixture of genuine and impostor pairs belongs
    to the protocol, so each replicate keeps it.
    """
    accuracy = np.zeros(len(weights))
    for kind in (truth, ~truth):
        if kind.any():
            drawn = weights[:, kind] @ share[kind]
            hits = weights[:, kind] @ (share * correct)[kind]
            rate = np.divide(hits, drawn, out=np.full_like(hits, np.nan), where=drawn > 0)
            accuracy += share[kind].sum() * rate
    return accuracy
