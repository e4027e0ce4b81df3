"""What `ppfr evaluate` and `ppfr benchmark` do with a heterogeneous protocol, fold by fold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppfr.cli.app import out, say_skipped
from ppfr.cli.models import load_model, model_input_size, model_names
from ppfr.data.faceset import Skipped
from ppfr.data.protocols.fold_tests import open_test
from ppfr.data.protocols.heterogeneous import Heterogeneous, open_heterogeneous
from ppfr.evaluation.evaluate import Model
from ppfr.evaluation.heterogeneous import FoldFigures, HeterogeneousFigures, evaluate_folds
from ppfr.reports.published import published_table
from ppfr.training.run import Run
from ppfr.util.errors import DataError
from ppfr.util.progress import progress_callback

FOLD = "{fold}"
"""Stands for a fold's number in the path of a run."""


def evaluate_protocol(
    run: Path,
    data: str,
    *,
    preprocessing: str | None,
    settings: Sequence[str] | None,
    flip: bool,
    seed: int,
    strict: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure and print; with `{fold}` in `run` each fold is measured with a run of its own."""
    source = open_heterogeneous(data)
    model, result, left_out = measure_protocol(
        run,
        source,
        preprocessing=preprocessing,
        settings=settings,
        flip=flip,
        seed=seed,
        strict=strict,
        device=device,
    )
    say_skipped(left_out)
    name, title = model_names(model)
    if as_json:
        about = {"method": name, "run": str(run), "data": data, "flip": flip, "seed": seed}
        described = {**about, "simulation": source.simulation, "heterogeneous": result.to_dict()}
        print(json.dumps(described, indent=2, allow_nan=False))
        return
    out.print(_table(f"{title} on {source.title}", result, published_table(source.protocol.name)))
    for line in _remarks(result, source):
        out.print(line, soft_wrap=True, markup=False, highlight=False)


def measure_protocol(
    run: Path,
    source: Heterogeneous,
    *,
    preprocessing: str | None,
    settings: Sequence[str] | None,
    flip: bool,
    seed: int,
    strict: bool,
    device: str,
) -> tuple[Model, HeterogeneousFigures, list[Skipped]]:
    """The figures of all folds that `run` may be measured on, the last model, and what the figures leave out."""
    folds = list(source.folds if source.chosen is None else (source.chosen,))
    if FOLD not in str(run):
        folds = _fair_folds(run, source, folds)
    figures: list[FoldFigures] = []
    left_out: dict[Skipped, None] = {}
    for path, numbers in _runs(run, folds):
        model = load_model(path, preprocessing, device, settings)
        test = open_test(source, numbers, size=model_input_size(model), strict=strict)
        left_out |= dict.fromkeys(test.left_out)
        with progress_callback(f"{source.title}: embedding") as progress:
            figures += evaluate_folds(model, test, flip=flip, seed=seed, progress=progress)
    return model, HeterogeneousFigures(source.title, source.simulation is not None, figures), list(left_out)


def _runs(run: Path, folds: list[int]) -> Iterator[tuple[Path, list[int]]]:
    """Which run is measured on which folds."""
    if FOLD not in str(run):
        yield run, folds
    else:
        for fold in folds:
            yield Path(str(run).replace(FOLD, str(fold))), [fold]


def _fair_folds(run: Path, source: Heterogeneous, folds: list[int]) -> list[int]:
    """The folds whose test people a run did not train on, as far as its record says."""
    record = Run(run)
    if not record.record_file.is_file():
        return folds
    trained = source.trained_fold(record.read_record().get("data", {}).get("name", ""))
    if trained is None or folds == [trained]:
        return folds
    if source.chosen is not None:
        raise DataError(
            f"{run} was trained on fold {trained}, whose training people are partly the test people of fold "
            f"{source.chosen}: that would measure memory. Train on fold {source.chosen}, or evaluate fold {trained}"
        )
    if trained not in folds:
        raise DataError(f"{run} was trained on fold {trained}, which {source.root} does not have complete")
    Console(stderr=True).print(
        f"{run} was trained on fold {trained}, so fold {trained} alone is measured: its people are in other folds' "
        f"tests. For all folds train one run each, and evaluate RUNS/fold{FOLD}",
        soft_wrap=True,
        markup=False,
    )
    return [trained]


def _table(title: str, result: HeterogeneousFigures, published: dict[str, Any]) -> Table:
    """Percentages by fold, their mean and deviation, then what others published."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    columns = list(result.mean())
    table.add_column("%", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("FAR=", ""), justify="right", no_wrap=True)
    mark = "simulated, " if result.simulated else ""
    for fold in result.folds:
        table.add_row(f"{mark}fold {fold.fold}", *(f"{100 * rate:.2f}" for rate in fold.rates().values()))
    deviation = result.deviation()
    if deviation is not None:
        table.add_section()
        table.add_row(f"{mark}mean", *(f"{100 * rate:.2f}" for rate in result.mean().values()), style="bold")
        table.add_row("± deviation", *(f"{100 * rate:.2f}" for rate in deviation.values()))
    table.add_section()
    for row in published["rows"]:
        known = dict(zip(published["columns"], row["values"], strict=True))
        cells = ["-" if known.get(name) is None else f"{known[name]:.1f}" for name in columns]
        table.add_row(f"published, {row['method']}", *cells, style="dim")
    return table


def _remarks(result: HeterogeneousFigures, source: Heterogeneous) -> Iterator[str]:
    """What the figures mean and what they leave out."""
    yield (
        "VR@1%: verification rate at FAR 1 %. Published rows: real images, trained on the protocol itself; from the "
        "README of PrivacyHFR."
    )
    folds = result.folds
    sizes = {
        "probes": [fold.probes for fold in folds],
        "people": [fold.people for fold in folds],
        "gallery photos": [fold.photos for fold in folds],
    }
    counted = ", ".join(f"{_span(numbers)} {what}" for what, numbers in sizes.items())
    yield f"{len(folds)} fold{'s' if len(folds) > 1 else ''}: {counted}."
    if result.simulated:
        about = source.simulation or {}
        yield (
            f"SIMULATED: the {source.protocol.probe_domain} images were computed from ordinary photos "
            f"(seed {about.get('seed')}; lists: {about.get('lists')}); these figures say nothing about real ones."
        )
    for fold in result.folds:
        if fold.unmatched:
            yield f"Fold {fold.fold}: {fold.unmatched} probes have no gallery photo of their person and count nowhere."
        if fold.unresolved:
            fars = ", ".join(f"{far:g}" for far in fold.unresolved)
            yield f"Fold {fold.fold}: {fold.impostor:,} impostor comparisons do not resolve FAR {fars}."


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
