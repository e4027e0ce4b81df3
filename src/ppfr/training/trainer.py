"""The loop over one stage of training: its start, its steps, its log and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppfr.data.batches import Augmentation, Batches
from ppfr.data.multi_dataset import JointBatches, JointFaces
from ppfr.distributed.global_batch import convert_layers
from ppfr.methods import Stage
from ppfr.recipes.recipe import StageSettings
from ppfr.training.checkpoints import restore, save_checkpoint
from ppfr.training.interruption import Interrupted, termination_requested
from ppfr.training.job import TrainingJob
from ppfr.training.losses import StageLosses
from ppfr.training.optimizer import autocast_dtype, rate_factor
from ppfr.training.start import start_stage
from ppfr.training.updater import Updater
from ppfr.util.errors import RecipeError
from ppfr.util.memory import release_memory
from ppfr.util.progress import bar

LOG_EVERY = 10


class StageTrainer:
    """The loop over one stage: its start, its batches, its log and its checkpoints."""

    def __init__(
        self,
        job: TrainingJob,
        stage: Stage,
        index: int,
        heads: Mapping[str, nn.Module] | None = None,
        *,
        resumes: bool = False,
    ) -> None:
        self.job, self.stage, self.index = job, stage, index
        self.method, self.recipe, self.run, self.ranks = job.method, job.recipe, job.run, job.ranks
        self.device = torch.device(job.device)
        self.settings: StageSettings = job.recipe.stage(stage.name)
        generator = torch.Generator().manual_seed(job.recipe.seed * 7919 + index)
        self.losses = StageLosses(
            stage, self.settings, job.faces, job.targets, job.ranks, self.device, generator, heads, resumes
        )
        self.parts = self.losses.parts
        self.dtype = autocast_dtype(job.recipe.precision, self.device)
        scales = {f"stage.{name}": factor for name, factor in stage.rate_scales.items()}
        self.updater = Updater(self.parts, self.settings, scales, job.ranks, self.device, self.dtype)
        self.per_epoch = len(self._batches(0)) * self.settings.repeats
        self.steps = round(self.per_epoch * self.settings.epochs)
        self._compute: Callable[..., dict[str, Tensor]] = self._losses

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The margin heads as training left them, by name; none without a margin loss."""
        return self.losses.heads

    def _batches(self, pass_index: int, start: int = 0) -> Batches | JointBatches:
        augment = self.recipe.augment
        make = (
            partial(JointBatches, self.job.faces)
            if isinstance(self.job.faces, JointFaces)
            else partial(Batches, self.job.faces)
        )
        return make(
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
        notes = start_stage(self.job, self.stage, self.index, self.parts)
        release_memory()
        return notes

    def run_epochs(self, state: Mapping[str, Any] | None, seconds: float, notes: Mapping[str, Any]) -> float:
        """Take all steps of the stage (those after `state` when resuming); returns the seconds spent so far.

        After SIGTERM or Ctrl-C to any rank the step under way is finished, a checkpoint written, Interrupted raised.
        """
        step = 0 if state is None else self._restore(state)
        for module in (self.method, self.parts):
            # torch's own annotation of `to` forgets this argument
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        started = saved = time.monotonic()
        with self._board() as board, bar() as progress, termination_requested() as terminated:
            task = progress.add_task(
                f"{self.method.info.name}/{self.stage.name}", total=self.steps, completed=step, note=""
            )
            convert_layers(self.parts, self.losses.batch)
            self._set_training()
            self._compute = self.updater.shared(self._losses)
            stops = False
            while step < self.steps and not stops:
                pass_index, start = divmod(step, len(self._batches(0)))
                for batch in self._batches(pass_index, start):
                    before = time.monotonic()
                    values = self._step(step, batch.images, batch.labels, batch.indices)
                    step += 1
                    if step % LOG_EVERY == 0 or step == self.steps:
                        row = self._row(step, values, len(batch.images) / (time.monotonic() - before))
                        progress.update(task, note=f"loss {row['loss']:.3f}")
                        self._log(row, board)
                    progress.advance(task)
                    now = time.monotonic()
                    stops, due = self._agree(terminated(), now - saved > 60 * self.recipe.checkpoint_minutes)
                    if due and not stops and step < self.steps:
                        self._save(step, seconds + now - started, notes)
                        saved = now
                    if stops or step == self.steps:
                        break
        elapsed = seconds + time.monotonic() - started
        self.method.eval()
        self._save(step, elapsed, notes)
        if stops:
            raise Interrupted(
                f"stopped in stage {self.stage.name!r} after step {step} of {self.steps}; a checkpoint is in "
                f"{self.run.folder}: repeat the command with --resume to continue"
            )
        return elapsed

    def _restore(self, state: Mapping[str, Any]) -> int:
        """Take up a checkpoint; returns its step."""
        step = int(state["step"])
        restore(self.run, state, self.parts, self.updater.optimizer)
        self.updater.scaler.load_state_dict(state["scaler"])
        if self.ranks.first:
            self.run.keep_metrics_before(self.index, step)
        return step

    def _board(self) -> AbstractContextManager[Any]:
        if not self.ranks.first:
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        board: AbstractContextManager[Any] = SummaryWriter(self.run.folder / "tensorboard")
        return board

    def _log(self, row: Mapping[str, Any], board: Any) -> None:
        if not self.ranks.first:
            return
        self.run.append_metrics(row)
        for name in ("loss", "lr", *(n for n in row if n.startswith("loss_"))):
            board.add_scalar(f"{self.stage.name}/{name}", row[name], row["step"])

    def _agree(self, terminated: bool, due: bool) -> tuple[bool, bool]:
        """What all ranks do next: stop when one of them was asked to, save when the first one's clock says so."""
        if not self.ranks.several:
            return terminated, due
        flags = torch.tensor([terminated, due and self.ranks.first], dtype=torch.float32, device=self.device)
        stops, saves = self.ranks.max_(flags).tolist()
        return bool(stops), bool(saves)

    def _set_training(self) -> None:
        self.method.eval()
        for parameter in self.method.parameters():
            parameter.requires_grad_(False)
        self.parts.train()
        for parameter in self.updater.parameters:
            parameter.requires_grad_(True)
        if self.settings.freeze_norm:
            for module in self.stage.module.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()

    def _losses(self, step: int, images: Tensor, labels: Tensor, indices: Tensor) -> dict[str, Tensor]:
        # every draw of a step follows from its number, so a resumed run repeats what an unbroken one would draw
        seed = (self.recipe.seed * 101 + self.index) * 1_000_003 + step
        epoch = step // max(1, self.per_epoch)
        return self.losses.compute(images, labels, indices, seed=seed, epoch=epoch, dtype=self.dtype)

    def _step(self, step: int, images: Tensor, labels: Tensor, indices: Tensor) -> dict[str, float]:
        """One update; returns the losses, over the images of all ranks."""
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device)
        self.updater.set_rate(rate_factor(self.settings.schedule, step, self.steps, self.per_epoch))
        losses = self._compute(step, images, labels, indices)
        total = torch.stack(list(losses.values())).sum()
        values = self.ranks.sum_(torch.stack([total, *losses.values()]).detach()) / self.ranks.world
        if not bool(torch.isfinite(values[0])):
            raise RecipeError(
                f"stage {self.stage.name!r}: the loss is {values[0].item():g} at step {step}; lower "
                f"training.optimizer.lr (now {self.settings.optimizer.lr:g}) or set precision=fp32"
            )
        self.updater.step(total)
        return dict(zip(["loss", *(f"loss_{name}" for name in losses)], values.tolist(), strict=True))

    def _row(self, step: int, values: Mapping[str, float], speed: float) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "stage_index": self.index,
            "epoch": round(step / self.per_epoch, 4),
            "step": step,
            **values,
            "lr": self.updater.optimizer.param_groups[0]["lr"],
            "images_per_second": round(speed * self.ranks.world, 1),
        }

    def _save(self, step: int, seconds: float, notes: Mapping[str, Any]) -> None:
        state = {
            "stage": self.index,
            "step": step,
            "seconds": seconds,
            "notes": dict(notes),
            "method": self.method.state_dict(),
            "scaler": self.updater.scaler.state_dict(),
        }
        save_checkpoint(self.run, self.ranks, state, self.parts, self.updater.optimizer)
