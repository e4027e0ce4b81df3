"""The one training loop: every method, every stage, with or without a teacher, on one process or under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppfr.data.faceset import FaceSet
from ppfr.distributed.process_group import Ranks, joined
from ppfr.methods import Method
from ppfr.methods.common.files import load_method, save_method
from ppfr.networks import Recogniser
from ppfr.recipes.recipe import Recipe
from ppfr.training.distillation import teacher_targets
from ppfr.training.job import TrainingJob
from ppfr.training.run import Run
from ppfr.training.trainer import StageTrainer
from ppfr.util.errors import RecipeError
from ppfr.util.memory import release_memory
from ppfr.util.progress import console


def train(
    method: Method,
    recipe: Recipe,
    faces: FaceSet,
    run: Run,
    *,
    teacher: Recogniser | None = None,
    targets: Tensor | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> Method:
    """Train all stages of `method` on `faces` and write the run folder; returns the method in evaluation mode.

    `targets` are the teacher's embeddings of `faces` if they are known already. With `resume` a run goes on from its
    last checkpoint and takes the same steps as if it had never stopped. Under torchrun all processes call, with equal
    arguments; they deal out each batch of `batch_size` images among them and take the steps that one process would.
    Raises RecipeError for a folder that holds another run, or for losses that need a teacher when there is none, and
    Interrupted when SIGTERM came, with a checkpoint written.
    """
    with joined(device) as ranks:
        return _train(method, recipe, faces, run, teacher, targets, resume, ranks, ranks.device(device))


def _train(
    method: Method,
    recipe: Recipe,
    faces: FaceSet,
    run: Run,
    teacher: Recogniser | None,
    targets: Tensor | None,
    resume: bool,
    ranks: Ranks,
    device: torch.device,
) -> Method:
    stages = method.stages()
    names = [stage.name for stage in stages]
    # what can be wrong is found before the folder is claimed
    chosen = chosen_stages(recipe, method.info.name, names)
    notes = {} if recipe.start_from is None else start_from(method, Path(recipe.start_from), names[: chosen[0]])
    record = run_record(method.info.name, faces, teacher)
    ranks.on_first(lambda: run.begin(recipe, record, resume=resume))
    if resume and run.finished:
        console.print(f"{run.folder} is finished already")
        return method
    state = run.load_checkpoint() if resume else None
    if state is None and ranks.first:
        # stopped before its first checkpoint: what it logged will be logged again
        run.metrics_file.unlink(missing_ok=True)
    if teacher is not None and targets is None and any(recipe.stage(names[i]).losses.distil for i in chosen):
        targets = teacher_targets(teacher, faces, ranks)
    method.to(device)
    seconds = 0.0
    if state is not None:
        method.load_state_dict(state["method"])
        seconds, notes = float(state["seconds"]), dict(state["notes"])
    job = TrainingJob(method, recipe, faces, run, teacher, targets, ranks, device)
    heads: dict[str, nn.Module] = {}
    for index, stage in enumerate(stages):
        if index not in chosen or (state and index < state["stage"]):
            continue
        stage_state = state if state and index == state["stage"] else None
        resumes = stage_state is not None
        trainer = StageTrainer(job, stage, index, heads, resumes=resumes)
        if not resumes:
            notes[stage.name] = trainer.initialise()
        seconds = trainer.run_epochs(stage_state, seconds, notes)
        release_memory()
        heads = trainer.heads
    method.eval()
    ranks.on_first(lambda: _finish(method, run, seconds, notes))
    return method


def _finish(method: Method, run: Run, seconds: float, notes: dict[str, Any]) -> None:
    run.write_record({**run.read_record(), "train_seconds": round(seconds, 1), "stages": notes})
    save_method(method, run.folder, trained=list(notes))
    run.checkpoint_file.unlink(missing_ok=True)
    run.drop_shards()


def chosen_stages(recipe: Recipe, method: str, names: list[str]) -> list[int]:
    """Indices of the stages a recipe trains; raises RecipeError for unknown stages and for those that lack a start."""
    for key, given in (("stages", list(recipe.stages)), ("only_stages", recipe.only_stages or [])):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise RecipeError(f"{key}.{unknown[0]}: {method} has the stages {names}")
    if recipe.only_stages is None:
        return list(range(len(names)))
    chosen = sorted({names.index(name) for name in recipe.only_stages})
    if not chosen or chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise RecipeError(f"only_stages is {recipe.only_stages}; expected neighbours among {names}, at least one")
    if chosen[0] > 0 and recipe.start_from is None:
        raise RecipeError(
            f"only_stages is {recipe.only_stages}, but stage {names[chosen[0]]!r} builds on {names[: chosen[0]]}; "
            "give the run that trained them as start_from"
        )
    return chosen


def start_from(method: Method, folder: Path, stages: list[str]) -> dict[str, Any]:
    """Take the weights and secrets of another run whose `stages` are trained; returns that run's notes on them.

    Tensors of equal name and shape are taken, so later stages may differ between the runs. Raises RecipeError for a run
    of another method, one that lacks a stage, or one whose trained weights do not fit; CheckpointError without a run.
    """
    source = load_method(folder, expect=method.info.name, partial=True)
    done = Run(folder).read_record().get("stages", {})
    missing = [name for name in stages if name not in done]
    if missing:
        raise RecipeError(f"start_from {folder}: stage {missing[0]!r} was not trained there; it trained {sorted(done)}")
    own, given = method.state_dict(keep_vars=True), source.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    trained = {
        id(tensor)
        for stage in method.stages()
        if stage.name in stages
        for tensor in stage.module.state_dict(keep_vars=True).values()
    }
    misfits = sorted(name for name, tensor in own.items() if id(tensor) in trained and name not in fitting)
    if misfits:
        raise RecipeError(
            f"start_from {folder}: its {', '.join(misfits[:4])} have other shapes or are absent; use the backbone and "
            "options of that run"
        )
    method.load_state_dict(fitting, strict=False)
    if method.info.secrets:
        method.set_secrets(source.secrets())
    return {name: {**done[name], "from": str(folder)} for name in stages}


def run_record(method: str, faces: FaceSet, teacher: Recogniser | None) -> dict[str, Any]:
    """What a run folder remembers of its method, data and teacher; resuming needs the same."""
    return {
        "method": method,
        "data": {"name": faces.name, "images": len(faces), "people": len(faces.identities)},
        "teacher": None if teacher is None else {"name": teacher.name, "sha256": teacher.sha256},
    }
