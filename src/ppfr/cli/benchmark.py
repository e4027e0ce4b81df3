"""`ppfr benchmark`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Printed

from ppfr.cli.app import (
    DeviceOption,
    FlipOption,
    PayloadSettings,
    PreprocessingOption,
    SeedOption,
    app,
    out,
    say_skipped,
)
from ppfr.cli.models import load_model, model_names
from ppfr.data.faceset import Skipped
from ppfr.data.protocols.benchmarks import SUITES, SuiteKind, find_suites, suite_names
from ppfr.data.protocols.heterogeneous import open_heterogeneous
from ppfr.evaluation.evaluate import Model, model_input_size
from ppfr.evaluation.protocol_runs import FOLD, measure_protocol
from ppfr.evaluation.suites import Settings, SuiteResult, evaluate_suite, protocol_result
from ppfr.methods import Method
from ppfr.reports.benchmarks import BenchmarkReport, to_json, write_benchmark
from ppfr.reports.tables import Table
from ppfr.util.errors import DataError
from ppfr.util.progress import progress_callback

# columns of figures that fit into 80 characters beside a name
_WIDEST = 7


@app.command()
def benchmark(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder or its model.safetensors; or a public recogniser's file, the unprotected reference. For "
            "heterogeneous protocols of many folds RUNS/fold{fold}: a run for each."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of the benchmarks under their usual names: lfw.bin, cfp_fp.bin, agedb_30.bin, calfw.bin, "
            "cplfw.bin, or folders lfw ... by bcolz with lfw_list.npy; RFW; IJBB and IJBC as InsightFace lays them "
            "out; LAMP-HQ, NIR-VISv2, Tufts with their lists in Protocol/. They may lie one folder deeper."
        ),
    ],
    suite: Annotated[
        str | None, typer.Option(help=f"Which to measure, comma-separated, all without: {', '.join(SUITES)}.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for benchmark.json, .md and .html, and tables as CSV and LaTeX."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    flip: FlipOption = True,
    keep_norms: Annotated[
        bool, typer.Option("--keep-norms", help="IJB: weigh the images of a template by the norm of their embeddings.")
    ] = False,
    detector_scores: Annotated[
        bool,
        typer.Option("--detector-scores", help="IJB: weigh the images of a template by the detector's score."),
    ] = False,
    preprocessing: PreprocessingOption = None,
    settings: PayloadSettings = None,
    seed: SeedOption = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Treat a missing benchmark or a broken image as an error.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Measure the benchmarks that papers report, beside the published figures.

    LFW and similar sets give the 10-fold accuracy, RFW that of four groups, IJB the TPR at FPR 1e-4 (and from 1e-6 to
    0.1, and 1:N), heterogeneous protocols Rank-1 and VR at FAR over their folds. Benchmarks that are missing in --data
    are listed and left out; a benchmark that cannot be measured is named, the others are measured, and the exit status
    is 1. With --out the files are written again after each benchmark.
    """
    wanted = suite_names(suite)
    found = find_suites(data, wanted)
    if found.missing and strict:
        raise DataError(f"{found.missing[0].path} {found.missing[0].reason}; refused under --strict")
    paths = found.paths
    if FOLD in str(run) and (others := [name for name in paths if SUITES[name].kind is not SuiteKind.PROTOCOL]):
        raise DataError(f"{run} names a run for each fold, and {others[0]} has none; give --suite lamp-hq or similar")
    bench = _Bench(
        run=run,
        preprocessing=preprocessing,
        settings=settings,
        device=device,
        how=Settings(flip=flip, seed=seed, strict=strict, keep_norms=keep_norms, detector_scores=detector_scores),
    )
    about = {"run": str(run), "data": str(data), "flip": flip, "seed": seed, "set": list(settings or [])}
    results: dict[str, SuiteResult] = {}
    failed: list[Skipped] = []
    for name, path in paths.items():
        try:
            results[name] = bench.measure(name, path)
            say_skipped(list(results[name].skipped))
        except DataError as error:
            if strict:
                raise
            failed.append(Skipped(name, str(error)))
        known = about | {"remarks": bench.remarks()}
        report = BenchmarkReport(*bench.names(), known, results, found.missing, failed)
        if out_dir is not None:
            write_benchmark(report, out_dir, shlex.join(["ppfr", *sys.argv[1:]]))
    if as_json:
        print(to_json(report.to_dict()), end="")
    else:
        _print(report)
        if out_dir is not None:
            out.print(f"Written to {out_dir}", soft_wrap=True, markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


@dataclass(kw_only=True)
class _Bench:
    """The model of a run, and how to measure it."""

    run: Path
    preprocessing: str | None
    settings: Sequence[str] | None
    device: str
    how: Settings
    model: Model | None = None

    def measure(self, name: str, path: Path) -> SuiteResult:
        """The figures of one benchmark."""
        if SUITES[name].kind is SuiteKind.PROTOCOL:
            self.model, figures, left_out, note = measure_protocol(
                self.run,
                open_heterogeneous(f"{name}:{path}"),
                self._load,
                flip=self.how.flip,
                seed=self.how.seed,
                strict=self.how.strict,
            )
            if note:
                Console(stderr=True).print(note, soft_wrap=True, markup=False)
            return protocol_result(name, path, figures, left_out)
        if self.model is None:
            self.model = self._load(self.run)
        with progress_callback(f"{SUITES[name].title}: embedding") as progress:
            how = replace(self.how, size=model_input_size(self.model), progress=progress)
            return evaluate_suite(self.model, name, path, how)

    def _load(self, run: Path) -> Model:
        return load_model(run, self.preprocessing, self.device, self.settings)

    def names(self) -> tuple[str, str]:
        """The short name of the model and the one for headings."""
        return (self.run.name, str(self.run)) if self.model is None else model_names(self.model)

    def remarks(self) -> list[str]:
        """What the method says of itself."""
        return self.model.remarks() if isinstance(self.model, Method) else []


def _print(report: BenchmarkReport) -> None:
    for table in report.tables().values():
        out.print(_printed(table))
    for note in dict.fromkeys(note for table in report.tables().values() for note in table.notes):
        out.print(note, soft_wrap=True, markup=False, highlight=False)
    console = Console(stderr=True)
    for kind, several in (("not measured", report.missing), ("failed", report.failed)):
        for name, reason in several:
            console.print(f"{SUITES[name].title} {kind}: {reason}", soft_wrap=True, markup=False, highlight=False)


def _printed(table: Table) -> Printed:
    """A table for a terminal, which has no room for columns without a figure of ours, nor for many: these lie down."""
    printed = Printed(title=f"{table.title}, %", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    measured = [place for place, value in enumerate(table.rows[0].values) if value.value is not None]
    printed.add_column("", overflow="fold")
    if len(measured) > _WIDEST:
        for row in table.rows:
            printed.add_column(row.name, justify="right")
        for place in measured:
            printed.add_row(table.columns[place].name, *(table.cells(row)[place] for row in table.rows))
        return printed
    for place in measured:
        printed.add_column(table.columns[place].name.replace("FAR=", ""), justify="right", no_wrap=True)
    for part in table.parts:
        for row in part:
            name = f"{row.source}, {row.name}" if row.source else row.name
            cells = table.cells(row)
            printed.add_row(name, *(cells[place] for place in measured), style="dim" if row.source else "bold")
        printed.add_section()
    return printed
