"""`ppfr compare`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table as Printed

from ppfr.cli.app import DataOption, DeviceOption, PreprocessingOption, StrictOption, app, out, recogniser
from ppfr.experiments.comparison import Comparison, Outcome, load_comparison
from ppfr.reports.audits import refuse_repository
from ppfr.reports.comparisons import comparison_tables, write_comparison_tables
from ppfr.reports.tables import Table
from ppfr.training.interruption import EXIT_STATUS, Interrupted
from ppfr.util.errors import PpfrError
from ppfr.util.progress import console


@app.command("compare")
def compare_command(
    recipe: Annotated[
        str, typer.Argument(help="quick, standard, strength, or a YAML file with methods, profile, audit and seeds.")
    ],
    data: DataOption,
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="Folder for runs, cards and tables; outside of any repository: cards show faces."),
    ],
    teacher: Annotated[
        Path | None, typer.Option(help="Public recogniser that teaches every method; none: labels.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Public recogniser that says whose face an attack recovered.")
    ] = None,
    own: Annotated[Path | None, typer.Option("--recogniser", help="The attackers' own public recogniser.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods, separated by commas, instead of the recipe's.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="For example 0,1,2, instead of the recipe's.")] = None,
    audit: Annotated[
        str | None, typer.Option(help="Profile of the audits instead of the recipe's; none for no audit.")
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
    """Train, measure and attack many methods under one protocol, and print the table. Repeat it to go on after a stop.

    ppfr compare quick --data DIR --teacher teacher.ckpt --judge judge.onnx --recogniser other.ckpt --out OUT

    Writes comparison.html, tables.json, and every table as CSV and LaTeX. Methods and seeds may be added later.
    """
    changes: dict[str, Any] = {}
    if methods is not None:
        changes["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    if seeds is not None:
        changes["seeds"] = [seed.strip() for seed in seeds.split(",") if seed.strip()]
    if audit is not None:
        changes["audit"] = None if audit == "none" else audit
    chosen = load_comparison(recipe, changes)
    if chosen.audit is not None and not data.startswith("synthetic"):
        refuse_repository(out_dir)
    job = Comparison(
        chosen,
        data,
        out_dir,
        teacher=recogniser(teacher, teacher_preprocessing),
        judge=recogniser(judge, judge_preprocessing),
        recogniser=recogniser(own, recogniser_preprocessing),
        heterogeneous=heterogeneous or (),
        strict=strict,
        device=device,
    )
    command = shlex.join(["ppfr", *sys.argv[1:]])
    facts = _facts(job)

    def write(outcomes: list[Outcome]) -> None:
        # after every method: a stop loses nothing that is done
        write_comparison_tables(outcomes, out_dir, command=command, facts=facts)

    try:
        outcomes = job.run(write)
    except Interrupted as stopped:
        console.print("the comparison was stopped; repeat the command to go on", soft_wrap=True)
        raise typer.Exit(EXIT_STATUS) from stopped
    tables = comparison_tables(outcomes)
    if as_json:
        print(json.dumps({name: table.to_dict() for name, table in tables.items()}, indent=2, allow_nan=False))
    else:
        _print(tables)
        out.print(f"Page: {out_dir / 'comparison.html'}\nTables: {out_dir / 'tables'}", soft_wrap=True, highlight=False)
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed:
        told = "; ".join(f"{one.label} (seed {one.seed}): {one.failed}" for one in failed)
        raise PpfrError(f"{len(failed)} of {len(outcomes)} failed: {told}")


def _facts(job: Comparison) -> list[str]:
    taught = f"teacher: {job.teacher.name}" if job.teacher else "no teacher: labels alone"
    judged = f"judge: {job.judge.name}" if job.judge else "no judge"
    chosen = job.recipe
    audited = "no audit" if chosen.audit is None else f"audit profile {chosen.audit}"
    return [
        f"data: {job.data}",
        f"{taught}; {judged}",
        f"recipes' profile {chosen.profile}, {audited}, seeds {', '.join(map(str, chosen.seeds))}",
    ]


def _print(tables: Mapping[str, Table]) -> None:
    for table in tables.values():
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
