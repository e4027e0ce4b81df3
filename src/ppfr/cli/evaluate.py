"""`ppfr evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ppfr.cli.app import DeviceOption, SeedOption, StrictOption, app, out, say_skipped
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.sources import holds_splits
from ppfr.evaluation.cost import measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs, open_evaluation
from ppfr.methods.files import load_method
from ppfr.progress import progress_callback


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or its model.safetensors.")],
    data: Annotated[
        str,
        typer.Option(
            help="Whose test people to verify: as for train, a pair list CSV (path_a,path_b,same), or an InsightFace "
            ".bin file."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    flip: Annotated[
        bool,
        typer.Option(help="Add the mirrored image's embedding, the field's custom: two payloads a face."),
    ] = True,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Measure verification accuracy and cost: 10-fold accuracy, TAR at FAR, AUC, EER, with 95 % intervals."""
    method = load_method(run).to(device)
    faces = open_evaluation(data, strict=strict, seed=seed)
    say_skipped(faces.skipped if isinstance(faces, FaceSet) else faces.pairs.skipped)
    if isinstance(faces, FaceSet) and not holds_splits(data):
        Console(stderr=True).print(
            f"{data} names no test people, so all {len(faces.identities)} are verified: if the run trained on it, the "
            "figures measure memory. Give a folder with train.csv and test.csv to test on people it never saw.",
            soft_wrap=True,
            markup=False,
        )
    with progress_callback(f"{method.info.name}: embedding") as progress:
        accuracy = evaluate_pairs(method, faces, flip=flip, seed=seed, progress=progress)
    images = faces.images(range(min(4, len(faces)))) if isinstance(faces, FaceSet) else faces.images[:4]
    cost = measure_cost(method, to_tensor(images).to(device), torch.Generator(device).manual_seed(seed))
    if as_json:
        result = {
            "method": method.info.name,
            "run": str(run),
            "data": data,
            "flip": flip,
            "seed": seed,
            "verification": accuracy.to_dict(),
            "cost": cost.to_dict(),
        }
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        out.print(f"[bold]{method.info.title}[/bold] on {data}", soft_wrap=True)
        out.print(str(accuracy), soft_wrap=True)
        out.print(str(cost), soft_wrap=True)
