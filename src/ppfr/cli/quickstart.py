"""`ppfr quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppfr.cli.app import (
    SMALL_POPULATION,
    DataOption,
    DeviceOption,
    PreprocessingOption,
    SeedOption,
    StrictOption,
    app,
    recogniser,
)
from ppfr.cli.compare import comma_separated, print_files, print_summary, report_failures, run_comparison
from ppfr.experiments.comparison import Comparison, load_comparison
from ppfr.experiments.summary import summarise
from ppfr.recipes.recipe import PROFILES


@app.command()
def quickstart(
    data: DataOption = SMALL_POPULATION,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Public recogniser to distil from: a checkpoint of TFace, AdaFace, InsightFace, CVLface, or ONNX."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Another public recogniser, which identifies recovered images. Never the teacher."),
    ] = None,
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for runs, summary.json and report.html; for real faces outside of any repository."
        ),
    ] = Path("out"),
    names: Annotated[
        str | None, typer.Option("--methods", help="Names separated by commas, or all, instead of the preset's.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Only these attacks, separated by commas, instead of the preset's.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = None,
    teacher_preprocessing: PreprocessingOption = None,
    judge_preprocessing: PreprocessingOption = None,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train, measure and attack protected recognisers, and write one HTML report. Repeat it to continue after a stop.

    It is `ppfr compare quickstart` with defaults: without --data it uses synthetic faces; without --teacher it first
    trains an unprotected recogniser as teacher; without --judge identification from recovered images is not measured.
    """
    changes: dict[str, Any] = {"seeds": [seed]}
    if names is not None:
        changes["methods"] = names if names == "all" else comma_separated(names)
    if attacks is not None:
        changes["attacks"] = comma_separated(attacks)
    if profile is not None:
        changes["profile"] = profile
    job = Comparison(
        load_comparison("quickstart", changes),
        data,
        out_dir,
        teacher=recogniser(teacher, teacher_preprocessing),
        judge=recogniser(judge, judge_preprocessing),
        strict=strict,
        device=device,
    )
    summaries = summarise(run_comparison(job))
    print_summary(summaries)
    print_files(out_dir)
    report_failures(summaries)
