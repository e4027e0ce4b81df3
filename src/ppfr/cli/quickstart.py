"""`ppfr quickstart`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ppfr.cli.app import (
    SMALL_POPULATION,
    DataOption,
    DeviceOption,
    PreprocessingOption,
    SeedOption,
    StrictOption,
    app,
    out,
    recogniser,
)
from ppfr.experiments.quickstart import DEFAULT_METHODS, Quickstart
from ppfr.recipes.recipe import PROFILES, recipe_names


@app.command()
def quickstart(
    data: DataOption = SMALL_POPULATION,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Public recogniser to learn from: a checkpoint of TFace, AdaFace, InsightFace, CVLface, or ONNX."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Another public recogniser, which says whose face an attack recovered. Never the teacher."),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for runs, summary.json and report.html.")] = Path(
        "out"
    ),
    names: Annotated[str, typer.Option("--methods", help="Names separated by commas, or all.")] = ",".join(
        DEFAULT_METHODS
    ),
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "quick",
    teacher_preprocessing: PreprocessingOption = None,
    judge_preprocessing: PreprocessingOption = None,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, measure and attack protected recognisers, and write one HTML report. Repeat it to go on after a stop.

    Without --data it uses synthetic faces; without --teacher it first trains an unprotected recogniser that teaches the
    protected ones.
    """
    chosen = recipe_names() if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    job = Quickstart(
        data=data,
        out=out_dir,
        teacher=recogniser(teacher, teacher_preprocessing),
        judge=recogniser(judge, judge_preprocessing),
        methods=chosen,
        profile=profile,
        seed=seed,
        strict=strict,
        device=device,
        command=shlex.join(["ppfr", *sys.argv[1:]]),
    )
    results = job.run()
    table = Table()
    for heading in ("method", "accuracy (95 %)", "leak", "ceiling", "SSIM", "payload", "seconds"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        row = result.row
        table.add_row(
            row["method"],
            f"{row['pair_accuracy']:.1%} ({100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f})",
            _share(row["leak_rank1"]),
            _share(row["ceiling_rank1"]),
            "-" if row["ssim"] is None else f"{row['ssim']:.2f}",
            f"{row['payload_bytes'] / 1000:.0f} kB",
            "-" if row["train_seconds"] is None else f"{row['train_seconds']:.0f}",
        )
    out.print(table)
    out.print(f"Report: {out_dir / 'report.html'}\nFigures: {out_dir / 'summary.json'}", soft_wrap=True)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
