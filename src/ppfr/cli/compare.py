"""`ppfr compare`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table as Printed

from ppfr.cli.app import DataOption, DeviceOption, PreprocessingOption, StrictOption, app, out, recogniser
from ppfr.experiments.comparison import Comparison, MethodOutcome, load_comparison
from ppfr.experiments.summary import MethodSummary, summarise, summary_rows
from ppfr.reports.comparison_tables import comparison_tables
from ppfr.reports.report import PAGE_FILE, SUMMARY_FILE, TABLES_FOLDER, write_report
from ppfr.reports.tables import Table
from ppfr.training.interruption import EXIT_STATUS, Interrupted
from ppfr.util.errors import PpfrError
from ppfr.util.progress import console


@app.command("compare")
def compare_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="quickstart, quick, standard, strength, or a YAML file with methods, profile, audit and seeds."
        ),
    ],
    data: DataOption,
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="Folder for runs, cards and the report; outside of any repository: it shows faces."),
    ],
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Public recogniser that every method is distilled from; without one, methods are trained on labels."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Public recogniser that identifies recovered images; without one, this is not measured."),
    ] = None,
    own: Annotated[Path | None, typer.Option("--recogniser", help="The attackers' own public recogniser.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods, separated by commas, instead of the recipe's.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, for example 0,1,2, instead of the recipe's.")] = None,
    audit: Annotated[
        str | None, typer.Option(help="Profile of the audits instead of the recipe's; none for no audit.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Only these attacks, separated by commas, instead of the recipe's.")
    ] = None,
    heterogeneous: Annotated[
        list[str] | None,
        typer.Option(help="Also train and measure on this protocol, for example lamp-hq:DIR,fold=1. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
    teacher_preprocessing: PreprocessingOption = None,
    judge_preprocessing: PreprocessingOption = None,
    recogniser_preprocessing: PreprocessingOption = None,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, measure and attack many methods under one protocol. Repeat the command to continue after a stop.

    ppfr compare quick --data DIR --teacher teacher.ckpt --judge judge.onnx --recogniser other.ckpt --out OUT

    Writes report.html, summary.json, tables.json, and every table as CSV and LaTeX. Methods and seeds may be added
    later.
    """
    changes: dict[str, Any] = {}
    if methods is not None:
        changes["methods"] = comma_separated(methods)
    if seeds is not None:
        changes["seeds"] = comma_separated(seeds)
    if audit is not None:
        changes["audit"] = None if audit == "none" else audit
    if attacks is not None:
        changes["attacks"] = comma_separated(attacks)
    job = Comparison(
        load_comparison(recipe, changes),
        data,
        out_dir,
        teacher=recogniser(teacher, teacher_preprocessing),
        judge=recogniser(judge, judge_preprocessing),
        recogniser=recogniser(own, recogniser_preprocessing),
        heterogeneous=heterogeneous or (),
        strict=strict,
        device=device,
    )
    summaries = summarise(run_comparison(job))
    tables = comparison_tables(summaries)
    if as_json:
        print(json.dumps({name: table.to_dict() for name, table in tables.items()}, indent=2, allow_nan=False))
    else:
        for table in tables.values():
            _print_table(table)
        print_files(out_dir)
    report_failures(summaries)


def run_comparison(job: Comparison) -> list[MethodOutcome]:
    """Run a comparison and write its report after every method, so that a stop loses nothing that is done."""
    command = shlex.join(["ppfr", *sys.argv[1:]])

    def write(outcomes: list[MethodOutcome]) -> None:
        write_report(outcomes, job.out, command=command, facts=job.facts, skipped=job.skipped)

    try:
        return job.run(write)
    except Interrupted as stopped:
        console.print("the comparison was stopped; repeat the command to continue", soft_wrap=True)
        raise typer.Exit(EXIT_STATUS) from stopped


def report_failures(summaries: Sequence[MethodSummary]) -> None:
    """Raise PpfrError that names every failed run."""
    count = sum(len(summary.outcomes) for summary in summaries)
    failed = [(summary.label, one) for summary in summaries for one in summary.outcomes if one.failed]
    if failed:
        reasons = "; ".join(f"{label} (seed {one.seed}): {one.failed}" for label, one in failed)
        raise PpfrError(f"{len(failed)} of {count} failed: {reasons}")


def comma_separated(text: str) -> list[str]:
    """The non-empty parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]


def print_summary(summaries: Sequence[MethodSummary]) -> None:
    """Print one line a method, as in `summary.json`, and the verdicts."""
    printed = Printed(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "accuracy (95 %)", "leak", "SSIM", "payload", "worst attack", "front"):
        printed.add_column(heading, overflow="fold")
    rows = summary_rows(summaries)
    for row in rows:
        printed.add_row(*_summary_cells(row))
    out.print(printed)
    for row in rows:
        if row["verdict"]:
            out.print(row["verdict"], soft_wrap=True, highlight=False, markup=False)


def _summary_cells(row: Mapping[str, Any]) -> list[str]:
    accuracy = "-"
    if row["pair_accuracy"] is not None:
        interval = f"{100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f}"
        accuracy = f"{row['pair_accuracy']:.1%} ({interval})"
    return [
        row["label"],
        accuracy,
        "-" if row["leak"] is None else f"{row['leak']:.0%}",
        "-" if row["ssim"] is None else f"{row['ssim']:.2f}",
        "-" if row["payload_bytes"] is None else f"{row['payload_bytes'] / 1000:.0f} kB",
        row["worst"] or "-",
        "yes" if row["pareto"] else "",
    ]


def print_files(folder: Path) -> None:
    """Print where the report lies."""
    lines = (f"Report: {folder / PAGE_FILE}", f"Summary: {folder / SUMMARY_FILE}", f"Tables: {folder / TABLES_FOLDER}")
    out.print("\n".join(lines), soft_wrap=True, highlight=False)


def _print_table(table: Table) -> None:
    printed = Printed(title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    printed.add_column("")
    for column in table.columns:
        printed.add_column(column.name, justify="right")
    for part in table.parts:
        for row in part:
            printed.add_row(row.name, *table.cells(row), style="dim" if row.source else "")
        printed.add_section()
    out.print(printed)
    for note in table.notes:
        out.print(note, soft_wrap=True, highlight=False, markup=False)
