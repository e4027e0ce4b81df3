"""`ppfr protect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ppfr.cli.app import PayloadSettings, app, out
from ppfr.cli.models import load_protected
from ppfr.data.images import IMAGE_SUFFIXES, read_image, to_tensor
from ppfr.methods import Payload
from ppfr.reports.pictures import describe_payload, payload_picture, save_png
from ppfr.util.errors import DataError
from ppfr.util.progress import track


@app.command()
def protect(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    photos: Annotated[list[Path], typer.Argument(help="Aligned face crops, or folders of them.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where payloads and pictures go.")],
    seed: Annotated[
        int | None,
        typer.Option(help="Fix the client's random draws; without it they are fresh, as they should be."),
    ] = None,
    settings: PayloadSettings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep payload files that lie in --out already; protect the other photos.")
    ] = False,
) -> None:
    """Turn photos into payload files, and draw what the server sees of each."""
    method = load_protected(run, settings)
    files = [file for photo in photos for file in _photo_files(photo)]
    stems = [file.stem for file in files]
    names = [f"{stem}-{number}" if stems.count(stem) > 1 else stem for number, stem in enumerate(stems)]
    waiting = [
        (number, file, out_dir / f"{name}.safetensors")
        for number, (file, name) in enumerate(zip(files, names, strict=True))
    ]
    if resume:
        waiting = [(number, file, target) for number, file, target in waiting if not target.exists()]
        out.print(f"{len(files) - len(waiting)} of {len(files)} photos are protected already")
    payload: Payload | None = None
    for number, file, target in track(waiting, f"{method.info.name}: protecting"):
        # a stream for each photo: what is drawn for one does not hang on which others are there
        generator = None if seed is None else torch.Generator().manual_seed(seed * 1_000_003 + number)
        payload = method.protect(to_tensor(read_image(file, method.input_size[0])[None]), generator)
        save_png(target.with_suffix(".png"), payload_picture(payload))
        payload.save(target)
        out.print(
            f"{file} -> {target} ({payload.nbytes:,} bytes raw, {payload.sent_nbytes:,} sent)",
            soft_wrap=True,
        )
    if payload is not None:
        out.print(f"The pictures show: {describe_payload(payload)}", soft_wrap=True)


def _photo_files(photo: Path) -> list[Path]:
    if photo.is_dir():
        found = sorted(file for file in photo.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{photo} holds no image; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
        return found
    return [photo]
