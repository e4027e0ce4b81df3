"""`ppfr protect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ppfr.cli.app import app, out
from ppfr.data.images import IMAGE_SUFFIXES, read_image, to_tensor
from ppfr.errors import DataError
from ppfr.methods.files import load_method
from ppfr.reports.pictures import describe_payload, payload_picture, save_png


@app.command()
def protect(
    run: Annotated[Path, typer.Argument(help="Run folder with the client's secrets.")],
    photos: Annotated[list[Path], typer.Argument(help="Aligned face crops, or folders of them.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where payloads and pictures go.")],
    seed: Annotated[
        int | None,
        typer.Option(help="Fix the client's random draws; without it they are fresh, as they should be."),
    ] = None,
) -> None:
    """Turn photos into payload files, and draw what the server sees of each."""
    method = load_method(run)
    files = [file for photo in photos for file in _photo_files(photo)]
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    stems = [file.stem for file in files]
    for number, file in enumerate(files):
        stem = file.stem if stems.count(file.stem) == 1 else f"{file.stem}-{number}"
        payload = method.protect(to_tensor(read_image(file, method.input_size[0])[None]), generator)
        payload.save(out_dir / f"{stem}.safetensors")
        save_png(out_dir / f"{stem}.png", payload_picture(payload))
        out.print(
            f"{file} -> {out_dir / stem}.safetensors ({payload.nbytes:,} bytes raw, {payload.sent_nbytes:,} sent)",
            soft_wrap=True,
        )
    out.print(f"The pictures show: {describe_payload(payload)}", soft_wrap=True)


def _photo_files(photo: Path) -> list[Path]:
    if photo.is_dir():
        found = sorted(file for file in photo.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{photo} holds no image; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
        return found
    return [photo]
