"""`ppfr tradeoff`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from ppfr.cli.app import DeviceOption, FlipOption, SeedOption, StrictOption, app, out, say_skipped
from ppfr.evaluation.evaluate import open_test_faces
from ppfr.evaluation.tradeoff import measure_tradeoff, payload_grid
from ppfr.methods.common.files import load_method
from ppfr.reports.figures import save_tradeoff_plot
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_path, atomic_write
from ppfr.util.progress import progress_callback


@app.command()
def tradeoff(
    run: Annotated[Path, typer.Argument(help="Run folder, or its model.safetensors.")],
    data: Annotated[str, typer.Option(help="Data whose test people are verified, as for train.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for tradeoff.json and tradeoff.png.")],
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="A setting and its values, for example bits=8,4; by default all that the method declares."),
    ] = None,
    loss: Annotated[
        float, typer.Option(help="Loss of accuracy that is acceptable for the recommended setting, as a fraction.")
    ] = 0.01,
    flip: FlipOption = False,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Plot pair accuracy against payload bytes for the settings that may change after training.

    For PRO-Face C these are the bits and the pruning of the feature maps. All settings verify the same pairs.
    """
    method = load_method(run).to(device)
    grid = payload_grid(method, _axes(sweep) if sweep else None)
    faces = open_test_faces(data, size=method.input_size[0], strict=strict, seed=seed)
    say_skipped(faces.skipped)
    with progress_callback(f"{method.info.name}: {len(grid)} settings") as progress:
        result = measure_tradeoff(method, faces, grid, flip=flip, seed=seed, progress=progress)
    best = result.best(loss)
    record = {"run": str(run), "data": data, "flip": flip, "seed": seed, **result.to_dict(loss)}
    atomic_write(out_dir / "tradeoff.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    with atomic_path(out_dir / "tradeoff.png") as path:
        save_tradeoff_plot(result, path, loss=loss, title=method.info.title)
    table = Table()
    for heading in ("setting", "accuracy (95 %)", "raw", "sent"):
        table.add_column(heading, no_wrap=True)
    for point in result.points:
        table.add_row(
            f"{point}{'  <- best' if point is best else ''}",
            f"{point.accuracy:.1%} ({100 * point.accuracy_low:.1f}-{100 * point.accuracy_high:.1f})",
            f"{point.raw_bytes / 1000:.1f} kB",
            f"{point.sent_bytes / 1000:.1f} kB",
        )
    out.print(table)
    out.print(
        f"Fewest bytes while losing less than {loss:.1%}: {best}: {best.sent_bytes:,} bytes, {best.accuracy:.1%} "
        f"(first setting {result.points[0].accuracy:.1%})\nPicture: {out_dir / 'tradeoff.png'}",
        soft_wrap=True,
    )


def _axes(sweep: Sequence[str]) -> dict[str, list[Any]]:
    """`bits=8,4` as {"bits": [8, 4]}."""
    axes: dict[str, list[Any]] = {}
    for given in sweep:
        name, equals, values = given.partition("=")
        if not equals or not name.strip() or not values.strip():
            raise DataError(f"--sweep {given!r} is not NAME=VALUE,VALUE, for example --sweep bits=8,4")
        axes[name.strip()] = [yaml.safe_load(value) for value in values.split(",")]
    return axes
