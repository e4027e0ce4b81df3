"""The ROC of genuine and impostor pairs: TAR at FAR targets, AUC, EER, and how sure we are of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ppfr.evaluation.metrics.statistics import (
    REPLICATES,
    Bools,
    Floats,
    Interval,
    PairResampling,
    People,
    as_plain,
    rate_interval,
)
from ppfr.util.errors import DataError

FarRule = Literal["below", "nearest"]

FARS = (1e-1, 1e-2, 1e-3)


@dataclass(frozen=True, kw_only=True)
class RocFigures:
    """What a ROC says of genuine and impostor pairs; rates in [0, 1], intervals 95 %.

    `tar` maps each FAR target to the TAR at the largest FAR not above it; `unresolved` are the targets
    below one false accept among `impostor` pairs, where the TAR is that of no false accept at all. Without
    a genuine or without an impostor pair there is no ROC: `auc`, `eer` and all of `tar` are None.
    `interval` says what was resampled.
    """

    pairs: int
    genuine: int
    impostor: int
    tar: dict[float, float | None]
    tar_interval: dict[float, Interval | None]
    unresolved: tuple[float, ...]
    auc: float | None
    auc_interval: Interval | None
    eer: float | None
    eer_interval: Interval | None
    interval: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; keys such as FAR targets become strings, intervals [low, high]."""
        return {item.name: as_plain(getattr(self, item.name)) for item in fields(self)}

    def __str__(self) -> str:
        shown = [
            f"TAR@FAR={far:g} {tar:.2%}" + (" (unresolved)" if far in self.unresolved else "")
            for far, tar in self.tar.items()
            if tar is not None
        ]
        if self.auc is not None and self.eer is not None:
            shown.append(f"AUC {self.auc:.4f}, EER {self.eer:.2%}")
        return f"{', '.join([*shown, ''])}{self.genuine} genuine, {self.impostor} impostor pairs"


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic: FAR and TAR (K,), both rising, of accepting scores >= `thresholds`.

    One point for each distinct score, after (0, 0) at threshold infinity; `genuine` and `impostor` count
    pairs.
    """

    far: Floats
    tar: Floats
    thresholds: Floats
    genuine: int
    impostor: int

    @property
    def auc(self) -> float:
        """Area under the curve: the chance that a genuine score beats an impostor's, ties counting half."""
        return float(_auc(self.far[None], self.tar[None])[0])

    @property
    def eer(self) -> float:
        """Equal error rate: where FAR = 1 - TAR on the curve, linear between its points."""
        return float(_eer(self.far[None], self.tar[None])[0])

    def corners(self) -> Roc:
        """The same curve without the points that lie on a line between their neighbours.

        scikit-learn's `roc_curve` gives these alone, and TFace's IJB script looks for the nearest FAR among
        them.
        """
        # counts, because rates round; (0, 0) stays out of the comparison as it does in scikit-learn
        accepts = np.rint(np.stack([self.far * self.impostor, self.tar * self.genuine]))[:, 1:]
        kept = np.ones(len(self.far), np.bool_)
        kept[2:-1] = np.diff(accepts, 2, axis=1).any(axis=0)
        return Roc(self.far[kept], self.tar[kept], self.thresholds[kept], self.genuine, self.impostor)

    def tar_at(self, far: float, rule: FarRule = "below") -> float:
        """TAR at the largest FAR not above `far`, or with `rule="nearest"` at the nearest one."""
        return float(self.tar[self.index_at(far, rule)])

    def index_at(self, far: float, rule: FarRule = "below") -> int:
        """Index of the point that `tar_at` uses: of the points of that FAR the one of the highest TAR.

        "nearest" is the rule of TFace's IJB script: of two equally near FARs the higher one. Raises DataError
        for another rule.
        """
        if rule not in ("below", "nearest"):
            raise DataError(f"FAR rule {rule!r}; expected 'below' or 'nearest'")
        last = int(np.searchsorted(self.far, far, side="right")) - 1
        if rule == "nearest" and last + 1 < len(self.far):
            above = self.far[last + 1]
            if above - far <= far - self.far[last]:
                last = int(np.searchsorted(self.far, above, side="right")) - 1
        return last


def roc(scores: npt.ArrayLike, same: npt.ArrayLike) -> Roc:
    """The ROC of scores (P,), higher meaning more alike, and truths (P,).

    Raises DataError without genuine or without impostor pairs.
    """
    values, truth = check_pairs(scores, same)
    if truth.all() or not truth.any():
        missing = "impostor" if truth.all() else "genuine"
        raise DataError(f"none of {len(truth)} pairs is {missing}; a ROC needs both kinds")
    thresholds, far, tar = _curves(values, truth, np.ones((1, len(values))))
    return Roc(far[0], tar[0], thresholds, int(truth.sum()), int((~truth).sum()))


def roc_of_parts(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Roc:
    """`roc` of genuine scores (G,) and impostor scores (I,) held apart, without points that no figure needs.

    For few genuine and millions of impostor scores: these are sorted once, and the curve has two points for each
    distinct genuine score, between which it is level or straight. AUC, EER and `tar_at(far)` are those of the full
    curve. Raises DataError as `roc` does.
    """
    right, wrong = (
        np.sort(check_pairs(values, np.full(np.shape(values), kind))[0])
        for values, kind in ((genuine, True), (impostor, False))
    )
    distinct = np.unique(right)[::-1]
    accepted = []
    for part in (wrong, right):
        above, at = (len(part) - np.searchsorted(part, distinct, side=side) for side in ("right", "left"))
        accepted.append(np.concatenate([[0], np.stack([above, at], axis=1).ravel(), [len(part)]]))
    next_above = np.append(wrong, np.inf)[len(wrong) - accepted[0][1:-1:2]]
    between = np.stack([next_above, distinct], axis=1).ravel()
    thresholds = np.concatenate([[np.inf], between, [min(right[0], wrong[0])]])
    # without an impostor between two genuine scores the point above the lower repeats the one at the higher
    fresh = np.append(True, (np.diff(accepted) != 0).any(axis=0))
    return Roc(
        accepted[0][fresh] / len(wrong), accepted[1][fresh] / len(right), thresholds[fresh], len(right), len(wrong)
    )


def roc_figures(
    scores: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    groups: People | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> RocFigures:
    """TAR at FAR targets, AUC and EER of scores (P,), higher meaning more alike, with their intervals.

    `groups` as in `verification`. Raises DataError for input that does not belong together.
    """
    values, truth = check_pairs(scores, same)
    targets = tuple(float(far) for far in fars)
    if not all(0 < far < 1 for far in targets):
        raise DataError(f"FAR targets are {list(targets)}; expected rates between 0 and 1, such as 0.001")
    resampling = PairResampling(truth, groups, replicates, seed)
    genuine = int(truth.sum())
    impostor = len(truth) - genuine
    rates: list[float | None] = [None] * (2 + len(targets))
    intervals: list[Interval | None] = [None] * (2 + len(targets))
    if genuine and impostor:
        curve = roc(values, truth)

        def statistics(weights: Floats) -> Floats:
            _, far, tar = _curves(values, truth, weights)
            return np.stack([_auc(far, tar), _eer(far, tar), *(_tar_at(far, tar, target) for target in targets)])

        known = [curve.auc, curve.eer, *map(curve.tar_at, targets)]
        rates = [*known]
        intervals = [
            rate_interval(rate, replicate, resampling.genuine_units)
            for rate, replicate in zip(known, resampling.map(statistics), strict=True)
        ]
    return RocFigures(
        pairs=len(truth),
        genuine=genuine,
        impostor=impostor,
        tar=dict(zip(targets, rates[2:], strict=True)),
        tar_interval=dict(zip(targets, intervals[2:], strict=True)),
        unresolved=tuple(target for target in targets if target * impostor < 1),
        auc=rates[0],
        auc_interval=intervals[0],
        eer=rates[1],
        eer_interval=intervals[1],
        interval=resampling.description,
    )


def _curves(scores: Floats, truth: Bools, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Thresholds (K,), FAR and TAR (R, K) by weights (R, P); NaN where a replicate lacks a kind of pair."""
    order = np.argsort(-scores, kind="stable")
    ranked, genuine = scores[order], truth[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    drawn = weights[:, order]
    rates = []
    for kind in (~genuine, genuine):
        running = np.zeros((len(weights), len(ends) + 1))
        running[:, 1:] = np.cumsum(drawn * kind, axis=1)[:, ends]
        total = running[:, -1:]
        rates.append(np.divide(running, total, out=np.full_like(running, np.nan), where=total > 0))
    return np.append(np.inf, ranked[ends]), rates[0], rates[1]


def _auc(far: Floats, tar: Floats) -> Floats:
    area: Floats = (np.diff(far, axis=1) * (tar[:, 1:] + tar[:, :-1])).sum(axis=1) / 2
    return area


def _eer(far: Floats, tar: Floats) -> Floats:
    excess = far + tar - 1
    after = np.maximum((excess >= 0).argmax(axis=1), 1)
    rows = np.arange(len(far))
    low, high = excess[rows, after - 1], excess[rows, after]
    share = np.divide(-low, high - low, out=np.full_like(low, np.nan), where=high > low)
    crossing: Floats = far[rows, after - 1] + share * (far[rows, after] - far[rows, after - 1])
    return crossing


def _tar_at(far: Floats, tar: Floats, target: float) -> Floats:
    index = np.maximum((far <= target).sum(axis=1) - 1, 0)
    found: Floats = np.take_along_axis(tar, index[:, None], axis=1)[:, 0]
    return found


def check_pairs(values: npt.ArrayLike, same: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Scores or distances (P,) and truths (P,) as arrays; raises DataError when they are not that."""
    scores, truth = np.asarray(values, np.float64), np.asarray(same)
    if scores.ndim != 1 or scores.shape != truth.shape or not scores.size:
        raise DataError(f"{scores.shape} values for {truth.shape} truths; expected (P,) of each, P > 0")
    if not np.isfinite(scores).all():
        raise DataError(f"value of pair {int(np.argmin(np.isfinite(scores)))} is NaN or infinite; expected numbers")
    if not np.isin(truth, (0, 1)).all():
        raise DataError(f"same holds {np.unique(truth)[:5].tolist()}; expected true and false (or 1 and 0)")
    return scores, truth.astype(np.bool_)
