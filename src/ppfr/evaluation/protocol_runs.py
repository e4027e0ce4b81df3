"""A run on a heterogeneous protocol, fold by fold, never on people that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ppfr.data.faceset import Skipped
from ppfr.data.protocols.fold_tests import open_test
from ppfr.data.protocols.heterogeneous import Heterogeneous
from ppfr.evaluation.evaluate import Model, model_input_size
from ppfr.evaluation.heterogeneous import FoldFigures, HeterogeneousFigures, evaluate_folds
from ppfr.training.run import Run
from ppfr.util.errors import DataError
from ppfr.util.progress import progress_callback

FOLD = "{fold}"
"""Stands for a fold's number in the path of a run."""


class ProtocolMeasurement(NamedTuple):
    """The last model and the figures of its folds, the images left out, and a note if folds are left out."""

    model: Model
    figures: HeterogeneousFigures
    left_out: list[Skipped]
    note: str


def measure_protocol(
    run: Path,
    source: Heterogeneous,
    load: Callable[[Path], Model],
    *,
    flip: bool = True,
    seed: int = 0,
    strict: bool = False,
) -> ProtocolMeasurement:
    """Measure a run on all folds that it may be measured on, or with `{fold}` in `run` each fold with its own run.

    `load` opens the model of a run folder. Raises DataError for a run that was trained on another fold than the chosen.
    """
    folds, note = list(source.folds if source.chosen is None else (source.chosen,)), ""
    if FOLD not in str(run):
        folds, note = _fair_folds(run, source, folds)
    figures: list[FoldFigures] = []
    left_out: dict[Skipped, None] = {}
    for path, numbers in _runs(run, folds):
        model = load(path)
        test = open_test(source, numbers, size=model_input_size(model), strict=strict)
        left_out |= dict.fromkeys(test.left_out)
        with progress_callback(f"{source.title}: embedding") as progress:
            figures += evaluate_folds(model, test, flip=flip, seed=seed, progress=progress)
    result = HeterogeneousFigures(source.title, source.simulation is not None, figures)
    return ProtocolMeasurement(model, result, list(left_out), note)


def _runs(run: Path, folds: list[int]) -> Iterator[tuple[Path, list[int]]]:
    """Each run with the folds that it is measured on."""
    if FOLD not in str(run):
        yield run, folds
    else:
        for fold in folds:
            yield Path(str(run).replace(FOLD, str(fold))), [fold]


def _fair_folds(run: Path, source: Heterogeneous, folds: list[int]) -> tuple[list[int], str]:
    """The folds whose test people a run did not train on, as far as its record says, and why some are left out."""
    record = Run(run)
    if not record.record_file.is_file():
        return folds, ""
    trained = source.trained_fold(record.read_record().get("data", {}).get("name", ""))
    if trained is None or folds == [trained]:
        return folds, ""
    if source.chosen is not None:
        raise DataError(
            f"{run} was trained on fold {trained}, whose training people are partly the test people of fold "
            f"{source.chosen}: that would not measure generalisation. Train on fold {source.chosen}, or evaluate "
            f"fold {trained}"
        )
    if trained not in folds:
        raise DataError(f"{run} was trained on fold {trained}, which {source.root} does not have complete")
    note = (
        f"{run} was trained on fold {trained}, so fold {trained} alone is measured: its people are in other folds' "
        f"tests. For all folds train one run each, and evaluate RUNS/fold{FOLD}"
    )
    return [trained], note
