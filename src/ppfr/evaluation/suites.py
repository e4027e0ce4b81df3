"""One model on the benchmarks that papers report, each by its own protocol and told in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppfr.data.faceset import Skipped
from ppfr.data.images import FACE_SIZE
from ppfr.data.pairs import open_pairs
from ppfr.data.suites import SUITES, Kind, Suite
from ppfr.evaluation.evaluate import Model, Progress, evaluate_pairs
from ppfr.evaluation.heterogeneous import HeterogeneousFigures


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What a benchmark gave: `rates` in [0, 1] under the headings of tables, and all `figures` as plain values.

    `deviations` are over the folds of a heterogeneous protocol. `remarks` say what to know of the figures, `skipped`
    what they leave out.
    """

    suite: Suite
    path: Path
    rates: Mapping[str, float]
    figures: Mapping[str, Any]
    deviations: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    simulated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.suite.title,
            "path": str(self.path),
            "rates": dict(self.rates),
            "deviations": dict(self.deviations),
            "simulated": self.simulated,
            "remarks": list(self.remarks),
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is measured: crops of `size`, the flip test, draws and resampling by `seed`."""

    size: int = FACE_SIZE
    flip: bool = True
    seed: int = 0
    strict: bool = False
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
        remarks.append(f"{unmatched} probes have no gallery photo of their person and count nowhere.")
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
    faces = open_pairs(path, size=settings.size, strict=settings.strict)
    figures = evaluate_pairs(model, faces, flip=settings.flip, seed=settings.seed, progress=settings.progress)
    return SuiteResult(
        suite=suite,
        path=path,
        rates={suite.column: figures.accuracy},
        figures=figures.to_dict(),
        remarks=_part_of(suite.pairs, figures.pairs, "pairs"),
        skipped=tuple(faces.pairs.skipped),
    )


def _part_of(whole: int | None, counted: int, what: str) -> tuple[str, ...]:
    """A remark where a set has another size than the published one."""
    if whole is None or counted == whole:
        return ()
    return (f"{counted:,} {what}, not the {whole:,} of the published set: not comparable with published figures.",)


_EVALUATE: dict[Kind, Callable[[Model, Suite, Path, Settings], SuiteResult]] = {Kind.PAIRS: _pairs}
