"""`ppfr simulate-hfr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import StrictOption, app, out, say_skipped
from ppfr.data.protocols.heterogeneous import PROTOCOLS
from ppfr.data.simulated_protocol import plan_layout, write_layout
from ppfr.util.progress import progress_callback


@app.command("simulate-hfr")
def simulate_hfr(
    faces: Annotated[
        str, typer.Option(help="Aligned photos with identities, as for train's --data; none of them is changed.")
    ],
    protocol: Annotated[str, typer.Option(help=f"Whose paths and lists: {', '.join(PROTOCOLS)}.")],
    out_dir: Annotated[
        Path, typer.Option("--out", help="Folder for the data set, new or of an earlier, stopped call.")
    ],
    lists: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the real list files in Protocol/: they are kept, and as many of their lines get an image "
            "as there are people and photos. Without it, lists of the same names and format are made."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits, gallery photos and noise.")] = 0,
    strict: StrictOption = False,
) -> None:
    """Make a heterogeneous data set from photos, with a simulated second modality.

    Use it to try LAMP-HQ, CASIA NIR-VIS 2.0 or Tufts without their images. Some photos of each person become
    visible-light images, the others are turned into near-infrared or thermal ones by a fixed transform (see
    docs/heterogeneous.md). SIMULATED.json marks the folder, and every figure measured on it is marked as simulated.
    Repeat the command to continue after a stop.
    """
    layout = plan_layout(faces, protocol, lists=lists, seed=seed, strict=strict)
    say_skipped(layout.left_out)
    with progress_callback(f"simulating {layout.protocol.title}") as progress:
        written = write_layout(layout, out_dir, progress)
    about = layout.description
    out.print(
        f"Simulated {layout.protocol.title}: {about['images']:,} images ({written:,} new) of {about['people']} people "
        f"in {out_dir}; lists: {about['lists']}\n"
        f"Next: ppfr train privacyhfr --data {protocol}:{out_dir} --out RUN\n"
        f"      ppfr evaluate RUN --data {protocol}:{out_dir}",
        soft_wrap=True,
        markup=False,
    )
