"""`ppfr convert`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import StrictOption, app, out, say_skipped
from ppfr.data.formats.convert import convert


@app.command("convert")
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder per identity (also in groups), a CSV of path,identity, NAME.parquet, TFRecord (NAME.txt or "
            "NAME/NAME.index), or RecordIO (NAME.rec)."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="Its suffix selects the format: NAME.parquet is one packed file, NAME.txt TFRecord with TFace's "
            "indices, NAME without a suffix a folder per identity."
        ),
    ],
    strict: StrictOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Turn training data from one format into another without loss.

    Images are copied byte for byte; their order, identities and names are kept (of TFRecord, NAME.txt holds numbers
    only; the names are in NAME/NAME.index). A file whose name the format cannot store, such as one that is not UTF-8
    in Parquet, is named by its number. Broken images are skipped and reported. Repeat the same command to continue
    after a stop; the target gets its name when it is complete.

    Example: `ppfr convert faces_emore/train.rec emore.parquet`
    """
    done = convert(source, target, strict=strict)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    say_skipped(done.skipped)
    resumed = f", resumed after {done.resumed_at:,}" if done.resumed_at else ""
    out.print(
        f"{done.target}: {done.format}, {done.images:,} images of {done.people:,} people, "
        f"{done.image_bytes / 1e6:,.1f} MB, {len(done.skipped)} skipped, in {done.seconds:.1f} s{resumed}",
        soft_wrap=True,
        highlight=False,
    )
