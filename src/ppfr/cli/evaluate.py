"""`ppfr evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ppfr.cli.app import (
    DeviceOption,
    FlipOption,
    PayloadSettings,
    PreprocessingOption,
    SeedOption,
    StrictOption,
    app,
    out,
    say_skipped,
)
from ppfr.cli.models import load_model, model_names
from ppfr.cli.protocols import evaluate_protocol
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.protocols.heterogeneous import is_heterogeneous
from ppfr.data.sources import holds_splits
from ppfr.evaluation.cost import QueryCost, measure_cost
from ppfr.evaluation.evaluate import evaluate_pairs, model_input_size, open_evaluation
from ppfr.methods import Method
from ppfr.util.progress import progress_callback


@app.command()
def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder or its model.safetensors; or a public recogniser's file, the unprotected reference. For a "
            "protocol of many folds RUNS/fold{fold}: a run for each."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Data whose test people are verified: as for train, a pair list CSV (path_a,path_b,same), an "
            "InsightFace .bin file, or a folder of face.evoLVe's (bcolz). Of lamp-hq:DIR, casia-nir-vis:DIR or "
            "tufts:DIR the gallery and probes of all folds, or of one with ,fold=N."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    flip: FlipOption = True,
    preprocessing: PreprocessingOption = None,
    settings: PayloadSettings = None,
    seed: SeedOption = 0,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Measure verification accuracy and cost: 10-fold accuracy, TAR at FAR, AUC, EER, with 95 % intervals.

    On a heterogeneous protocol instead, fold by fold: Rank-1, VR at FAR 1 %, 0.1 % and 0.01 %, AUC and EER, with mean
    and deviation over the folds, beside the published figures.
    """
    if is_heterogeneous(data):
        evaluate_protocol(
            run,
            data,
            preprocessing=preprocessing,
            settings=settings,
            flip=flip,
            seed=seed,
            strict=strict,
            device=device,
            as_json=as_json,
        )
        return
    model = load_model(run, preprocessing, device, settings)
    faces = open_evaluation(data, size=model_input_size(model), strict=strict, seed=seed)
    say_skipped(faces.skipped if isinstance(faces, FaceSet) else faces.pairs.skipped)
    if isinstance(faces, FaceSet) and not holds_splits(data):
        Console(stderr=True).print(
            f"{data} names no test people, so all {len(faces.identities)} are verified: if the run trained on it, the "
            "figures do not measure generalisation. Give a folder with train.csv and test.csv to test on other people.",
            soft_wrap=True,
            markup=False,
        )
    name, title = model_names(model)
    with progress_callback(f"{name}: embedding") as progress:
        accuracy = evaluate_pairs(model, faces, flip=flip, seed=seed, progress=progress)
    cost: QueryCost | None = None
    if isinstance(model, Method):
        images = faces.images(range(min(4, len(faces)))) if isinstance(faces, FaceSet) else faces.images[:4]
        cost = measure_cost(model, to_tensor(images).to(device), torch.Generator(device).manual_seed(seed))
    if as_json:
        result = {
            "method": name,
            "run": str(run),
            "data": data,
            "flip": flip,
            "seed": seed,
            "remarks": model.remarks() if isinstance(model, Method) else [],
            "verification": accuracy.to_dict(),
            "cost": None if cost is None else cost.to_dict(),
        }
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        out.print(f"[bold]{title}[/bold] on {data}", soft_wrap=True)
        out.print(str(accuracy), soft_wrap=True)
        if cost is not None:
            out.print(str(cost), soft_wrap=True)
        for remark in model.remarks() if isinstance(model, Method) else []:
            out.print(f"Note: {remark}", soft_wrap=True, markup=False, highlight=False)
