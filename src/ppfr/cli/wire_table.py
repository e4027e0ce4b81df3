"""`ppfr wire-table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ppfr.cli.app import SeedOption, StrictOption, app, out, say_skipped
from ppfr.evaluation.codings import measure_codings
from ppfr.evaluation.evaluate import PAIRS, open_test_faces
from ppfr.methods.common.files import load_method
from ppfr.util.files import atomic_write
from ppfr.util.progress import progress_callback


@app.command("wire-table")
def wire_table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    data: Annotated[str, typer.Option(help="Data whose test people are verified, as for train.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="JSON file for the figures.")] = None,
    coding: Annotated[
        list[str] | None,
        typer.Option(help="A coding: float32, float16, int8, dct:ERROR. Repeatable; the first is the reference."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of genuine pairs to verify, and of impostor pairs.")] = PAIRS,
    seed: SeedOption = 0,
    strict: StrictOption = False,
) -> None:
    """Print bytes on the wire against pair accuracy, for every coding of each run's payloads.

    All codings are measured on the same faces, random draws and pairs; no training is needed.
    """
    record = []
    for run in runs:
        method = load_method(run)
        faces = open_test_faces(data, size=method.input_size[0], strict=strict, seed=seed)
        say_skipped(faces.skipped)
        with progress_callback(f"{method.info.name}: codings") as progress:
            costs = measure_codings(method, faces, coding, genuine=pairs, impostor=pairs, seed=seed, progress=progress)
        table = Table(title=f"{method.info.title}: {method.schema.nbytes / 1000:,.1f} kB raw")
        for heading in ("coding", "bytes (most)", "accuracy (95 %)", "points lost"):
            table.add_column(heading, no_wrap=True)
        for cost in costs:
            table.add_row(
                cost.coding,
                f"{cost.bytes_mean:,} ({cost.bytes_most:,})",
                f"{cost.accuracy:.2%} ({100 * cost.accuracy_low:.1f}-{100 * cost.accuracy_high:.1f})",
                f"{100 * cost.lost:+.2f}",
            )
        out.print(table)
        record.append(
            {
                "run": str(run),
                "method": method.info.name,
                "raw_bytes": method.schema.nbytes,
                "codings": [cost.to_dict() for cost in costs],
            }
        )
    if out_file is not None:
        values = {"data": data, "pairs": pairs, "seed": seed, "runs": record}
        atomic_write(out_file, json.dumps(values, indent=2, allow_nan=False) + "\n")
