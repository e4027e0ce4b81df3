"""The one training loop: every method, every stage, with or without a teacher."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ppfr.data.batches import Augmentation, Batches
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.errors import RecipeError
from ppfr.heads import Head, build_head
from ppfr.methods import Method, Mixture, Stage
from ppfr.methods.files import load_method, save_method
from ppfr.networks import Recogniser
from ppfr.networks.gated import GatedConv2d
from ppfr.progress import bar, console
from ppfr.training.distillation import Distillation, teacher_targets
from ppfr.training.recipe import Recipe, Schedule, StageSettings
from ppfr.training.run import Run
from ppfr.training.warmstart import align_experts, can_warm_start, warm_start

_LOG_EVERY = 10
# images at least that calibrate a stage and fit its first layer
_LEAST_SAMPLE = 144
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together (torchrun sets the environment)."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Join the process group that torchrun announced, or stand alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), world)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the ranks, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


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
    last checkpoint and takes the same steps as if it had never stopped. Raises RecipeError for a folder that holds
    another run, or for losses that need a teacher when there is none.
    """
    ranks = Ranks.from_environment()
    stages = method.stages()
    names = [stage.name for stage in stages]
    # what can be wrong is found before the folder is claimed
    chosen = chosen_stages(recipe, method.info.name, names)
    notes = {} if recipe.start_from is None else start_from(method, Path(recipe.start_from), names[: chosen[0]])
    record = run_record(method.info.name, faces, teacher)
    if ranks.rank == 0:
        run.begin(recipe, record, resume=resume)
    if resume and run.finished:
        console.print(f"{run.folder} is finished already")
        return method
    state = run.load_checkpoint() if resume else None
    if state is None and ranks.rank == 0:
        # stopped before its first checkpoint: what it logged will be logged again
        run.metrics_file.unlink(missing_ok=True)
    if teacher is not None and targets is None and any(recipe.stage(names[i]).losses.distil for i in chosen):
        targets = teacher_targets(teacher, faces)
    method.to(device)
    seconds = 0.0
    if state is not None:
        method.load_state_dict(state["method"])
        seconds, notes = float(state["seconds"]), dict(state["notes"])
    head: Head | None = None
    for index, stage in enumerate(stages):
        if index not in chosen or (state and index < state["stage"]):
            continue
        stage_state = state if state and index == state["stage"] else None
        resumes = stage_state is not None
        trainer = StageTrainer(
            method, stage, index, recipe, faces, run, teacher, targets, ranks, device, head, resumes=resumes
        )
        if not resumes:
            notes[stage.name] = trainer.initialise()
        seconds = trainer.run_epochs(stage_state, seconds, notes)
        head = trainer.head
    method.eval()
    if ranks.rank == 0:
        run.write_record({**run.read_record(), "train_seconds": round(seconds, 1), "stages": notes})
        save_method(method, run.folder, trained=list(notes))
        run.checkpoint_file.unlink(missing_ok=True)
    return method


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


class StageTrainer:
    """One stage: what moves, by which losses, and how it is saved."""

    def __init__(
        self,
        method: Method,
        stage: Stage,
        index: int,
        recipe: Recipe,
        faces: FaceSet,
        run: Run,
        teacher: Recogniser | None,
        targets: Tensor | None,
        ranks: Ranks,
        device: torch.device | str,
        head: Head | None = None,
        *,
        resumes: bool = False,
    ) -> None:
        self.method, self.stage, self.index, self.recipe = method, stage, index, recipe
        self.faces, self.run, self.teacher, self.ranks = faces, run, teacher, ranks
        self.device = torch.device(device)
        self.settings: StageSettings = recipe.stage(stage.name)
        self.targets = None if targets is None else targets.to(self.device)
        generator = torch.Generator().manual_seed(recipe.seed * 7919 + index)
        losses = self.settings.losses
        self.distil_weight = losses.distil if targets is not None else 0.0
        self.margin_weight = losses.margin
        if self.distil_weight == 0 and self.margin_weight == 0:
            raise RecipeError(
                f"stage {stage.name!r}: losses.distil needs a teacher and losses.margin is 0, so nothing would be "
                "learned; give --teacher FILE or --set training.losses.margin=1"
            )
        size = stage.embedding_size
        parts: dict[str, nn.Module] = {"stage": stage.module}
        if self.margin_weight:
            chosen = self.settings.head
            if stage.continues_head and head is None and not resumes:
                raise RecipeError(
                    f"stage {stage.name!r} goes on with the head of the stage before it, which had none; train both "
                    "stages in one run with losses.margin above 0"
                )
            parts["head"] = (
                head
                if stage.continues_head and head is not None
                else build_head(
                    chosen.name,
                    embedding_size=size,
                    classes=len(faces.identities),
                    generator=generator,
                    **chosen.options,
                )
            )
        if self.distil_weight:
            assert targets is not None
            parts["distillation"] = Distillation(size, targets.shape[1], generator)
        self.parts = nn.ModuleDict(parts).to(self.device)
        self.parameters = list(self.parts.parameters())
        scales = {f"stage.{name}": factor for name, factor in stage.rate_scales.items()}
        self.optimizer = build_optimizer(self.parts, self.settings, scales)
        per_epoch = len(self._batches(0)) * self.settings.repeats
        self.per_epoch, self.steps = per_epoch, round(per_epoch * self.settings.epochs)
        self.dtype = autocast_dtype(recipe.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    @property
    def head(self) -> Head | None:
        """The margin head as training left it."""
        head = self.parts["head"] if self.margin_weight else None
        assert head is None or isinstance(head, Head)
        return head

    def _batches(self, pass_index: int, start: int = 0) -> Batches:
        augment = self.recipe.augment
        return Batches(
            self.faces,
            self.settings.batch_size,
            seed=self.recipe.seed * 100 + self.index,
            epoch=pass_index,
            augmentation=Augmentation(flip=augment.flip, shift=augment.shift, jitter=augment.jitter),
            start_batch=start,
            rank=self.ranks.rank,
            world=self.ranks.world,
            prefetch=self.device.type == "cuda",
        )

    def initialise(self) -> dict[str, Any]:
        """Calibrate the stage on a sample and start warm from the teacher where possible; returns what was done."""
        stage = self.stage
        generator = torch.Generator().manual_seed(self.recipe.seed * 7919 + 500 + self.index)
        wanted = max(self.recipe.warm_start_images, stage.sample)
        chosen = torch.randperm(len(self.faces), generator=generator)[:wanted]
        # a tiny set is used several times over, so that every kind of payload is seen
        chosen = chosen.repeat(-(-_LEAST_SAMPLE // len(chosen)))
        images = to_tensor(self.faces.images(chosen.numpy()))
        # a stage may train helpers that are no part of the method
        for module in (self.method, self.parts):
            module.eval().cpu()
        notes: dict[str, Any] = {}
        if stage.calibrate is not None:
            stage.calibrate(images[: max(_LEAST_SAMPLE, stage.sample)], generator)
        # what only the calibration needed makes the fit of the first layer dear, not better
        images = images[: max(_LEAST_SAMPLE, self.recipe.warm_start_images)]
        if stage.trunk is not None:
            if self.recipe.warm_start and self.teacher is not None and can_warm_start(stage.trunk, self.teacher):
                notes["warm_start"] = warm_start(stage, self.teacher, images, generator).to_dict()
                if stage.after_warm_start is not None:
                    stage.after_warm_start(images[:32], generator)
            elif isinstance(stage.trunk.first_layer, GatedConv2d):
                notes["aligned_experts"] = align_experts(stage, images, generator)
        for module in (self.method, self.parts):
            module.to(self.device)
        return notes

    def run_epochs(self, state: Mapping[str, Any] | None, seconds: float, notes: Mapping[str, Any]) -> float:
        """Take all steps of the stage (those after `state` when resuming); returns the seconds spent so far."""
        step = 0
        if state is not None:
            step = int(state["step"])
            self.parts.load_state_dict(state["parts"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ranks.rank == 0:
                self.run.keep_metrics_before(self.index, step)
        for module in (self.method, self.parts):
            # torch's own annotation of `to` forgets this argument
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        started = saved = time.monotonic()
        writer: AbstractContextManager[Any] = (
            SummaryWriter(self.run.folder / "tensorboard") if self.ranks.rank == 0 else nullcontext()
        )
        with writer as board, bar() as progress:
            task = progress.add_task(
                f"{self.method.info.name}/{self.stage.name}", total=self.steps, completed=step, note=""
            )
            self._set_training()
            while step < self.steps:
                pass_index, start = divmod(step, len(self._batches(0)))
                for batch in self._batches(pass_index, start):
                    before = time.monotonic()
                    values = self._step(step, batch.images, batch.labels, batch.indices)
                    step += 1
                    if step % _LOG_EVERY == 0 or step == self.steps:
                        row = self._row(step, values, len(batch.images) / (time.monotonic() - before))
                        progress.update(task, note=f"loss {row['loss']:.3f}")
                        if self.ranks.rank == 0:
                            self.run.append_metrics(row)
                            for name in ("loss", "lr", *(n for n in row if n.startswith("loss_"))):
                                board.add_scalar(f"{self.stage.name}/{name}", row[name], step)
                    progress.advance(task)
                    now = time.monotonic()
                    if now - saved > 60 * self.recipe.checkpoint_minutes and step < self.steps:
                        self._save(step, seconds + now - started, notes)
                        saved = now
                    if step == self.steps:
                        break
        elapsed = seconds + time.monotonic() - started
        self.method.eval()
        self._save(self.steps, elapsed, notes)
        return elapsed

    def _set_training(self) -> None:
        self.method.eval()
        for parameter in self.method.parameters():
            parameter.requires_grad_(False)
        self.parts.train()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self.settings.freeze_norm:
            for module in self.stage.module.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()

    def _step(self, step: int, images: Tensor, labels: Tensor, indices: Tensor) -> dict[str, float]:
        """One update; returns the losses and the learning rate."""
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device)
        factor = rate_factor(self.settings.schedule, step, self.steps, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.optimizer.lr * group["scale"] * factor
        # every draw of a step follows from its number, so a resumed run repeats what an unbroken one would draw
        seed = (self.recipe.seed * 101 + self.index) * 1_000_003 + step * self.ranks.world + self.ranks.rank
        draws = torch.Generator(self.device).manual_seed(seed)
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None),
        ):
            # dropout layers know only the global generator
            torch.manual_seed(seed)
            outcome = self.stage.forward(images, labels, draws)
        losses = dict(outcome.losses)
        if self.distil_weight:
            assert self.targets is not None
            wanted = self.targets[indices.to(self.device)]
            if outcome.mixture is not None:
                wanted = (outcome.mixture.weights[..., None] * wanted[outcome.mixture.rows]).sum(1)
            losses["distil"] = self.distil_weight * self.parts["distillation"](outcome.embedding, wanted)
        if self.margin_weight:
            embedding = outcome.embedding.float()
            if self.settings.dropout is not None:
                keep = 1.0 - self.settings.dropout.rate(step // max(1, self.per_epoch))
                kept = torch.rand(embedding.shape, generator=draws, device=self.device) < keep
                embedding = embedding * kept / keep
            losses["margin"] = self.margin_weight * self._margin_loss(embedding, labels, outcome.mixture)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            raise RecipeError(
                f"stage {self.stage.name!r}: the loss is {total.item():g} at step {step}; lower "
                f"training.optimizer.lr (now {self.settings.optimizer.lr:g}) or set precision=fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.parameters)
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": total.item()} | {f"loss_{name}": value.item() for name, value in losses.items()}

    def _margin_loss(self, embedding: Tensor, labels: Tensor, mixture: Mixture | None) -> Tensor:
        """Cross entropy of the margin head; of a mixture the weighted sum over the people in it."""
        head = self.parts["head"]
        if mixture is None:
            return F.cross_entropy(head(embedding, labels), labels)
        shares = zip(labels[mixture.rows].unbind(1), mixture.weights.unbind(1), strict=True)
        terms = [weight * F.cross_entropy(head(embedding, whose), whose, reduction="none") for whose, weight in shares]
        return torch.stack(terms).sum(0).mean()

    def _row(self, step: int, values: Mapping[str, float], speed: float) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "stage_index": self.index,
            "epoch": round(step / self.per_epoch, 4),
            "step": step,
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round(speed * self.ranks.world, 1),
        }

    def _save(self, step: int, seconds: float, notes: Mapping[str, Any]) -> None:
        if self.ranks.rank == 0:
            self.run.save_checkpoint(
                {
                    "stage": self.index,
                    "step": step,
                    "seconds": seconds,
                    "notes": dict(notes),
                    "method": self.method.state_dict(),
                    "parts": self.parts.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                }
            )


def build_optimizer(
    parts: nn.Module, settings: StageSettings, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; norm layers, PReLU slopes and biases are found by module type and spared from weight decay.

    `scales` are factors on the learning rate of everything below a module, by the module's name in `parts`.
    """
    chosen = settings.optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in parts.named_modules():
        factors = [f for below, f in (scales or {}).items() if path == below or path.startswith(f"{below}.")]
        for name, parameter in module.named_parameters(recurse=False):
            spared = isinstance(module, _NORMS) or name.endswith("bias")
            decay = 0.0 if spared else chosen.weight_decay
            groups.setdefault((decay, math.prod(factors)), []).append(parameter)
    listed = [
        {"params": found, "weight_decay": decay, "scale": scale}
        for (decay, scale), found in sorted(groups.items(), reverse=True)
    ]
    if chosen.name == "adamw":
        return torch.optim.AdamW(listed, lr=chosen.lr)
    if chosen.name == "adam":
        return torch.optim.Adam(listed, lr=chosen.lr)
    return torch.optim.SGD(listed, lr=chosen.lr, momentum=chosen.momentum)


def rate_factor(schedule: Schedule, step: int, steps: int, per_epoch: int) -> float:
    """Learning rate at `step` of `steps` as a factor of its peak.

    `one_cycle` rises from 1/25 and falls to 1e-4 of the peak along cosines (Smith and Topin 2019).
    """
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "steps":
        return float(schedule.gamma ** sum(step >= milestone * per_epoch for milestone in schedule.milestones))
    rise = max(1.0, schedule.warmup * steps)
    if step < rise:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise))
    progress = (step - rise) / max(1.0, steps - rise)
    return 1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, or None for plain float32; `auto` takes bfloat16 where the processor computes in it."""
    if precision == "fp32":
        return None
    if precision in {"bf16", "fp16"}:
        return torch.bfloat16 if precision == "bf16" else torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _computes_bf16() else None


def _computes_bf16() -> bool:
    """True for processors with AVX512-BF16 or AMX instructions; elsewhere bfloat16 is emulated and slower."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
