"""`ppfr prepare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import app, out
from ppfr.cli.launch import under_torchrun
from ppfr.data.detection.detectors import DETECTORS, open_detector
from ppfr.data.preparation.choosing import open_chooser
from ppfr.data.preparation.cutting import SMALLEST_FACE, Cutter
from ppfr.data.preparation.prepare import PREPARE_FORMATS, prepare
from ppfr.distributed.process_group import Ranks, joined


@app.command("prepare")
def prepare_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Photographs: a folder of any depth, where the name of the containing folder is the "
            "identity, or a CSV of path,identity."
        ),
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The set to write. Its suffix selects the format: none for a folder per identity, .parquet for one "
            "packed file, .txt for TFRecord with TFace's indices.",
        ),
    ],
    format: Annotated[str | None, typer.Option(help=f"{', '.join(PREPARE_FORMATS)}: adds the suffix to --out.")] = None,
    detector: Annotated[
        str,
        typer.Option(
            help=f"{' or '.join(DETECTORS)}. YuNet is fetched once (230 kB, from OpenCV's model zoo, its hash "
            "checked) and kept in $PPFR_CACHE or ~/.cache/ppfr; RetinaFace needs --model, is "
            "slower, and its landmarks are somewhat better."
        ),
    ] = "yunet",
    model: Annotated[Path | None, typer.Option(help="The detector's weights, instead of fetched ones.")] = None,
    size: Annotated[
        int, typer.Option(help="Pixels a side of a crop: 112, or 128 (the same face, more around it).")
    ] = 112,
    faces: Annotated[
        str,
        typer.Option(
            help="Which faces of a photograph: largest (and central), all (each with the identity of the photograph), "
            "or a CSV with the columns path, left, top, right, bottom and perhaps identity, boxes in pixels of the "
            "upright photograph."
        ),
    ] = "largest",
    min_face: Annotated[
        float, typer.Option(help="Minimum width and height of a face, in pixels; smaller faces are left out.")
    ] = SMALLEST_FACE,
    workers: Annotated[
        int | None, typer.Option(help="Threads of each process; by default they take all cores together.", min=1)
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes on this machine; one with a thread a core is usually enough.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Find the faces in photographs and write them aligned, ready for training and evaluation.

    Photographs are rotated by their EXIF orientation. Each face is aligned to ArcFace's landmark template and cropped.
    Photographs without a usable face are counted by reason, listed in NAME.prepared/refused.csv and drawn in
    refused.png; faces.csv lists the source of each crop. Repeat the same command to continue after a stop. The work is
    done in parts of 128 photographs, shared among --processes or, on several machines with a shared disk, among the
    ranks of torchrun; the set has the same bytes whatever their number.

    Example: `ppfr prepare photos --out faces.parquet`
    """
    if processes > 1 and not Ranks.from_environment().several:
        under_torchrun(processes)
        return
    cut = Cutter(open_chooser(faces), size, min_face)
    find = partial(open_detector, detector, model)
    with joined() as ranks:
        done = prepare(source, target, find, cut, format=format, workers=workers, ranks=ranks)
    if not ranks.first:
        return
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    resumed = f", resumed after {done.resumed_at:,} photographs" if done.resumed_at else ""
    lines = [
        f"{done.target}: {done.format}, {done.crops:,} faces of {done.people:,} people from {done.photographs:,} "
        f"photographs, in {done.seconds:.1f} s{resumed}",
        *(f"left out: {count:,} {reason}" for reason, count in done.refused.items()),
        *(f"not looked at: {count:,} files {suffix}" for suffix, count in done.ignored.items()),
        f"report: {done.report}; thumbnails of what was left out: {done.thumbnails}",
    ]
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False, markup=False)
