"""`ppfr train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import DATA_HELP, DeviceOption, PreprocessingOption, StrictOption, app, out, recogniser, say_skipped
from ppfr.data.faceset import FaceSet
from ppfr.data.multi_dataset import JointFaces
from ppfr.data.sources import open_splits
from ppfr.distributed.process_group import joined
from ppfr.methods import create
from ppfr.recipes.recipe import PROFILES, DataSet, load_recipe
from ppfr.training.interruption import EXIT_STATUS, Interrupted
from ppfr.training.loop import train
from ppfr.training.run import Run
from ppfr.util.errors import DataError


@app.command("train")
def train_command(
    method_or_recipe: Annotated[str, typer.Argument(help="A method's name (see `ppfr methods`) or a recipe file.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=f"{DATA_HELP} Repeatable: several sets are learned side by side, each with a head of its own; the "
            "recipe's `data` sets their shares of a batch and their weights.",
        ),
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Public recogniser to distil: any checkpoint or ONNX.")] = None,
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "standard",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe: KEY=VALUE, for example training.epochs=3. Repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with the same steps and losses.")
    ] = False,
    teacher_preprocessing: PreprocessingOption = None,
    strict: StrictOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train one method. With --teacher it is distilled from a public recogniser; without, it is trained on labels.

    Under torchrun the processes share the work and take the same steps as one: `torchrun --nproc-per-node 8 -m ppfr
    train ... --device cuda`. training.batch_size counts the images of all processes, the classes of the head are
    distributed, and training.head.sample_rate=0.1 trains on a sample of the classes. SIGTERM or Ctrl-C writes a
    checkpoint and exits with status 143. --resume continues the run on any number of processes, or starts it if there
    is none. See docs/scaling.md.
    """
    known = recogniser(teacher, teacher_preprocessing)
    recipe = load_recipe(method_or_recipe, profile=profile, taught=known is not None, overrides=settings or [])
    sources = [DataSet(source=source) for source in data] if data else recipe.data
    if not sources:
        raise DataError("no training data: give --data DIR, or `data` in the recipe")
    if len(sources) > 1:
        recipe = recipe.model_copy(update={"data": sources})
    architecture = known.architecture if known is not None and known.backbone is not None else None
    method = create(recipe.method, recipe.backbone_spec(architecture), recipe.seed, **recipe.options)
    with joined(device) as ranks:
        faces = _open_training(sources, method.input_size[0], strict, recipe.seed)
        if ranks.first:
            say_skipped(faces.skipped)
        try:
            train(method, recipe, faces, Run(out_dir), teacher=known, resume=resume, device=device)
        except Interrupted as stopped:
            if ranks.first:
                out.print(str(stopped), soft_wrap=True)
            raise typer.Exit(EXIT_STATUS) from stopped
        if ranks.first:
            following = f"ppfr evaluate {out_dir} --data {sources[0].source}"
            out.print(f"Trained {recipe.method}: {out_dir}\nNext: {following}", soft_wrap=True)


def _open_training(sources: Sequence[DataSet], size: int, strict: bool, seed: int) -> FaceSet:
    """The training people of one source, or of several joined."""
    sets = [open_splits(chosen.source, size=size, strict=strict, seed=seed)[0] for chosen in sources]
    if len(sets) == 1:
        return sets[0]
    shares = [chosen.share or float(len(faces)) for chosen, faces in zip(sources, sets, strict=True)]
    return JointFaces(sets, shares, [chosen.weight for chosen in sources])
