"""One model on the benchmarks that papers report, each by its own protocol, with results of one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppfr.data.faceset import Skipped
from ppfr.data.formats.carray import is_carray, load_carray
from ppfr.data.formats.pair_files import open_pairs
from ppfr.data.images import FACE_SIZE
from ppfr.data.protocols.benchmarks import SUITES, Suite, SuiteKind
from ppfr.data.protocols.ijb import open_ijb, read_ijb
from ppfr.data.protocols.rfw import GROUPS, open_rfw, rfw_groups
from ppfr.evaluation.evaluate import Model, Progress, embed_faces, evaluate_pairs
from ppfr.evaluation.heterogeneous import HeterogeneousFigures
from ppfr.evaluation.ijb import FPIRS, RANKS, search_templates, template_features, verify_templates
from ppfr.evaluation.metrics.verification import Verification

PUBLISHED_FPR = 1e-4
"""The FPR at which papers give the TPR on IJB-B and IJB-C."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """The result of a benchmark: `rates` in [0, 1] under the headings of tables, and all `figures` as plain values.

    `deviations` are over the folds of a heterogeneous protocol. `remarks` say what to know of the figures, `skipped`
    what they leave out. `whole` is false for a set of another size than the published one.
    """

    suite: Suite
    path: Path
    rates: Mapping[str, float]
    figures: Mapping[str, Any]
    deviations: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    simulated: bool = False
    whole: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.suite.title,
            "path": str(self.path),
            "rates": dict(self.rates),
            "deviations": dict(self.deviations),
            "simulated": self.simulated,
            "whole": self.whole,
            "remarks": list(self.remarks),
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is measured: crops of `size`, the flip test, draws and resampling by `seed`.

    In IJB's templates images count alike, or with `keep_norms` and `detector_scores` as much as their embeddings are
    long and the detector was sure.
    """

    size: int = FACE_SIZE
    flip: bool = True
    seed: int = 0
    strict: bool = False
    keep_norms: bool = False
    detector_scores: bool = False
    progress: Progress | None = None


def evaluate_suite(model: Model, name: str, path: Path, settings: Settings) -> SuiteResult:
    """Measure a model on a benchmark at `path`, any of `SUITES` but the heterogeneous protocols.

    Those need a model for each fold: see `ppfr.evaluation.heterogeneous` and `protocol_result`. Raises DataError for
    files that cannot be used, and with `strict` for anything left out.
    """
    suite = SUITES[name]
    return _EVALUATE[suite.kind](model, suite, path, settings)


def protocol_result(
    name: str, path: Path, figures: HeterogeneousFigures, skipped: Sequence[Skipped] = ()
) -> SuiteResult:
    """The figures of a heterogeneous protocol in the form of the others."""
    remarks = []
    if figures.simulated:
        remarks.append("SIMULATED: one modality was computed from photos; this says nothing about real sensors.")
    if unmatched := sum(fold.unmatched for fold in figures.folds):
        remarks.append(f"{unmatched} probes have no gallery photo of their person and are left out of all figures.")
    return SuiteResult(
        suite=SUITES[name],
        path=path,
        rates=figures.mean(),
        deviations=figures.deviation() or {},
        figures=figures.to_dict(),
        remarks=(f"{len(figures.folds)} fold{'' if len(figures.folds) == 1 else 's'}.", *remarks),
        skipped=tuple(skipped),
        simulated=figures.simulated,
    )


def _pairs(model: Model, suite: Suite, path: Path, settings: Settings) -> SuiteResult:
    if is_carray(path):
        faces = load_carray(path, size=settings.size)
    else:
        faces = open_pairs(path, size=settings.size, strict=settings.strict)
    figures = evaluate_pairs(model, faces, flip=settings.flip, seed=settings.seed, progress=settings.progress)
    return SuiteResult(
        suite=suite,
        path=path,
        rates={suite.column: figures.accuracy},
        figures=figures.to_dict(),
        remarks=_part_of(suite, figures.pairs),
        whole=figures.pairs == suite.pairs,
        skipped=tuple(faces.pairs.skipped),
    )


def _rfw(model: Model, suite: Suite, path: Path, settings: Settings) -> SuiteResult:
    """The 10-fold accuracy of each group whose list is there, their mean, and how far they lie apart."""
    figures: dict[str, Verification] = {}
    skipped: list[Skipped] = []
    for group in rfw_groups(path):
        faces = open_rfw(path, group, size=settings.size, strict=settings.strict)
        figures[group] = evaluate_pairs(
            model, faces, flip=settings.flip, seed=settings.seed, progress=settings.progress
        )
        skipped += faces.pairs.skipped
    rates = {group: found.accuracy for group, found in figures.items()}
    accuracies = list(rates.values())
    pairs = sum(found.pairs for found in figures.values())
    missing = [group for group in GROUPS if group not in figures]
    return SuiteResult(
        suite=suite,
        path=path,
        rates=rates | {"mean": float(np.mean(accuracies)), "deviation": float(np.std(accuracies))},
        figures={group: found.to_dict() for group, found in figures.items()},
        remarks=(
            *_part_of(suite, pairs),
            *([f"no list of {', '.join(missing)}."] if missing else []),
        ),
        whole=pairs == suite.pairs,
        skipped=tuple(skipped),
    )


def _ijb(model: Model, suite: Suite, path: Path, settings: Settings) -> SuiteResult:
    lists = read_ijb(path, suite.names[0])
    test = open_ijb(lists, size=settings.size, strict=settings.strict)
    templates = template_features(
        embed_faces(model, test.faces, flip=settings.flip, seed=settings.seed, progress=settings.progress),
        lists.templates[test.rows],
        lists.medias[test.rows],
        keep_norms=settings.keep_norms,
        weights=lists.scores[test.rows] if settings.detector_scores else None,
    )
    pairs = test.pairs
    verified = verify_templates(templates, lists.first[pairs], lists.second[pairs], lists.same[pairs])
    found = {
        name: search_templates(templates, *test.probes, *gallery)
        for name, gallery in test.galleries.items()
        if test.probes is not None
    }
    rates = {suite.column: verified.tpr[PUBLISHED_FPR]}
    rates |= {f"TPR@FPR={fpr:g}": rate for fpr, rate in verified.tpr.items()}
    rates |= {f"Rank-{k}": float(np.mean([one.rank[k] for one in found.values()])) for k in (RANKS if found else ())}
    for fpir in FPIRS:
        if known := [rate for one in found.values() if (rate := one.tpir[fpir]) is not None]:
            rates[f"TPIR@FPIR={fpir:g}"] = float(np.mean(known))
    weighing = [name for name, on in (("length", settings.keep_norms), ("detector", settings.detector_scores)) if on]
    remarks = [f"images weigh by {' and '.join(weighing)}."] if weighing else []
    if verified.unresolved:
        fprs = ", ".join(f"{fpr:g}" for fpr in verified.unresolved)
        remarks.append(f"{verified.impostor:,} impostor pairs do not resolve FPR {fprs}.")
    if not found:
        remarks.append("no 1:N: the galleries' and probes' lists are not there.")
    return SuiteResult(
        suite=suite,
        path=path,
        rates=rates,
        figures={
            "images": len(test.faces),
            "templates": len(templates),
            "keep_norms": settings.keep_norms,
            "detector_scores": settings.detector_scores,
            "verification": verified.to_dict(),
            "search": {name: one.to_dict() for name, one in found.items()},
        },
        remarks=(*_part_of(suite, verified.pairs), *remarks),
        whole=verified.pairs == suite.pairs,
        skipped=tuple(test.left_out),
    )


def _part_of(suite: Suite, pairs: int) -> tuple[str, ...]:
    """A remark where a set has another size than the published one."""
    if pairs == suite.pairs:
        return ()
    return (f"{pairs:,} pairs, not the {suite.pairs:,} of the published set: not comparable with published figures.",)


_EVALUATE: dict[SuiteKind, Callable[[Model, Suite, Path, Settings], SuiteResult]] = {
    SuiteKind.PAIRS: _pairs,
    SuiteKind.RFW: _rfw,
    SuiteKind.IJB: _ijb,
}
