"""`ppfr protect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppfr.auditing.payload_pictures import describe_payload, payload_picture
from ppfr.cli.app import PayloadSettings, app, out
from ppfr.cli.models import identify_model, load_protected
from ppfr.evaluation.payload_files import photos_to_protect, protect_photos
from ppfr.methods import Payload
from ppfr.reports.pictures import save_png
from ppfr.util.progress import track


@app.command()
def protect(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    photos: Annotated[list[Path], typer.Argument(help="Aligned face crops, or folders of them.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for payloads and pictures.")],
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the client's random draws, for repeatable tests; without it they are fresh, as in deployment."
        ),
    ] = None,
    settings: PayloadSettings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep payload files that are in --out already; protect the other photos.")
    ] = False,
) -> None:
    """Turn photos into payload files, and draw each payload.

    Repeat the command to continue after a stop.
    """
    method = load_protected(run, settings)
    named = photos_to_protect(photos, out_dir)
    waiting = [one for one in named if not (resume and one.target.exists())]
    if resume:
        out.print(f"{len(named) - len(waiting)} of {len(named)} photos are protected already")
    done = protect_photos(method, waiting, out_dir, model=identify_model(method, run, settings), seed=seed)
    payload: Payload | None = None
    for one in track(done, f"{method.info.name}: drawing"):
        payload = Payload.load(one.target, method.schema)
        save_png(one.target.with_suffix(".png"), payload_picture(payload))
        out.print(f"{one.photo} -> {one.target} ({one.raw_bytes:,} bytes raw, {one.sent_bytes:,} sent)", soft_wrap=True)
    if payload is not None:
        out.print(f"The pictures show: {describe_payload(payload)}", soft_wrap=True)
