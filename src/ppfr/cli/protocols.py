"""`ppfr evaluate` on a heterogeneous protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppfr.cli.app import out, say_skipped
from ppfr.cli.models import load_model, model_names
from ppfr.data.protocols.heterogeneous import Heterogeneous, open_heterogeneous
from ppfr.evaluation.heterogeneous import HeterogeneousFigures
from ppfr.evaluation.protocol_runs import measure_protocol
from ppfr.reports.published import published_table


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
    load = partial(load_model, preprocessing=preprocessing, device=device, settings=settings)
    model, result, left_out, note = measure_protocol(run, source, load, flip=flip, seed=seed, strict=strict)
    if note:
        Console(stderr=True).print(note, soft_wrap=True, markup=False)
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
            left_out = "have no gallery photo of their person and are left out of all figures"
            yield f"Fold {fold.fold}: {fold.unmatched} probes {left_out}."
        if fold.unresolved:
            fars = ", ".join(f"{far:g}" for far in fold.unresolved)
            yield f"Fold {fold.fold}: {fold.impostor:,} impostor comparisons are too few to measure FAR {fars}."


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
