"""`ppfr export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ppfr.cli.app import PayloadSettings, app, out
from ppfr.cli.models import load_protected

if TYPE_CHECKING:
    from ppfr.serving.contract import Contract


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for client/ and server/.")],
    coding: Annotated[
        str,
        typer.Option(
            help="Coding of payloads on the wire: float32, float16, int8, or dct:ERROR for block-DCT channels."
        ),
    ] = "float32",
    precision: Annotated[
        str,
        typer.Option(
            help="Precisions of the server's graph, for example float32,int8; float16 halves the file, int8 stores "
            "most weights in one byte. They are calibrated on the training people of --data and measured on its test "
            "people. bfloat16 is not offered: ONNX Runtime has no such convolutions for CPUs."
        ),
    ] = "float32",
    data: Annotated[
        str | None,
        typer.Option(help="Aligned faces for --precision: any source that train takes, split into train and test."),
    ] = None,
    settings: PayloadSettings = None,
) -> None:
    """Split a run into a client for devices and a server.

    `client/` holds weights, settings, and the secrets in a file that only its owner may read; where the client can be
    exported, also an ONNX graph without any secret, for the web page and other clients without Python. `server/` holds
    an ONNX graph that embeds payloads, without any secret. Both hold the id of their common contract.

    Graphs of other precisions are written beside the server's `embed.onnx`, for example `embed.int8.onnx`. Their loss
    is measured and printed: cosines between their embeddings and those of float32, and pair accuracy on the test
    people with its interval. `ppfr serve --precision int8` uses such a graph.

    Example: `ppfr export RUN --out DEPLOYMENT --precision float32,int8 --data DIR`
    """
    from ppfr.data.sources import open_splits
    from ppfr.methods.common.graph import NoGraph
    from ppfr.serving.deployment.export import export_method
    from ppfr.serving.deployment.precision import measure_costs, parse_precisions, write_variants
    from ppfr.util.errors import MethodError

    others = parse_precisions(precision)
    if others and data is None:
        raise MethodError(f"--precision {precision}: give faces with --data, to calibrate and to measure the cost")
    method = load_protected(run, settings)
    exported = export_method(method, out_dir, coding=coding)
    graph = exported.graph
    client = (
        f"no graph of this client: {graph.reason}"
        if isinstance(graph, NoGraph)
        else f"ONNX differs from PyTorch by {graph.difference:.1g}"
    )
    out.print(
        f"contract {exported.contract.id}\n{out_dir / 'client'}: to devices; {client}\n"
        f"{out_dir / 'server'}: to the server; ONNX differs from PyTorch by {exported.difference:.1g} of the "
        f"largest value",
        soft_wrap=True,
    )
    warn_of(exported.contract)
    if others and data is not None:
        train, test = open_splits(data, size=method.input_size[0])
        write_variants(method, out_dir / "server", others, train)
        out.print(f"on {test.name}, {len(test.identities)} people, one query a face, the same payloads:")
        for cost in measure_costs(method, out_dir / "server", others, test):
            out.print(
                f"{cost.precision:>8} {cost.file_bytes / 1e6:7.2f} MB, pair accuracy {cost.accuracy:.2%} "
                f"[{cost.accuracy_low:.2%}, {cost.accuracy_high:.2%}], cosine to float32 {cost.mean_cosine:.4f} on "
                f"average, at least {cost.least_cosine:.4f}",
                soft_wrap=True,
            )


def warn_of(contract: Contract) -> None:
    """Warn of a method that does not protect."""
    if contract.warning is not None:
        Console(stderr=True).print(f"[bold yellow]warning:[/] {contract.warning}", soft_wrap=True)
