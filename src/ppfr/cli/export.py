"""`ppfr export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import PayloadSettings, app, out
from ppfr.cli.models import load_protected


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for client/ and server/.")],
    coding: Annotated[
        str,
        typer.Option(
            help="How clients write payloads: float32, float16, int8, or planes:ERROR for block-DCT channels."
        ),
    ] = "float32",
    settings: PayloadSettings = None,
) -> None:
    """Split a run into what goes to devices and what goes to the server.

    `client/` protects: weights, settings, and the secrets in a file that only its owner may read; where the client can
    be a graph, also that (ONNX without any secret, for the web page and other clients without Python). `server/`
    embeds: an ONNX graph without any secret. Both carry the id of the contract that ties them together.
    """
    from ppfr.methods.graph import NoGraph
    from ppfr.serving.export import export_method

    exported = export_method(load_protected(run, settings), out_dir, coding=coding)
    batch = "any number of images" if exported.batch is None else f"{exported.batch} image"
    graph = exported.graph
    client = (
        f"no graph of this client: {graph.reason}"
        if isinstance(graph, NoGraph)
        else f"ONNX differs from PyTorch by {graph.difference:.1g}"
    )
    out.print(
        f"contract {exported.contract.id}\n{out_dir / 'client'}: to devices; {client}\n"
        f"{out_dir / 'server'}: to the server; ONNX differs from PyTorch by {exported.difference:.1g} of the "
        f"largest value, takes {batch} at a time",
        soft_wrap=True,
    )
