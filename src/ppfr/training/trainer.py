"""One stage of training: what moves, by which losses, on one rank or several."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppfr.data.batches import Augmentation, Batches
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.multi_dataset import JointBatches, JointFaces, split_batch
from ppfr.distributed.global_batch import GlobalBatch, convert_layers, rand
from ppfr.distributed.process_group import Ranks
from ppfr.heads import Head, ShardedHead, build_head
from ppfr.methods import Method, Mixture, Stage
from ppfr.networks import Recogniser
from ppfr.networks.base import FilterBankConv
from ppfr.recipes.recipe import Recipe, StageSettings
from ppfr.training.checkpoints import restore, save_checkpoint
from ppfr.training.distillation import Distillation
from ppfr.training.interruption import Interrupted, termination_requested
from ppfr.training.optimizer import autocast_dtype, build_optimizer, clip_gradients, rate_factor
from ppfr.training.run import Run
from ppfr.training.warmstart import align_banks, can_warm_start, warm_start
from ppfr.util.errors import RecipeError
from ppfr.util.memory import release_memory
from ppfr.util.progress import bar

LOG_EVERY = 10
# images at least that calibrate a stage and fit its first layer
_LEAST_SAMPLE = 144


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
        heads: Mapping[str, nn.Module] | None = None,
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
            if stage.continues_head and not heads and not resumes:
                raise RecipeError(
                    f"stage {stage.name!r} goes on with the head of the stage before it, which had none; train both "
                    "stages in one run with losses.margin above 0"
                )
            parts |= heads if stage.continues_head and heads else self._build_heads(size, generator)
        if self.distil_weight:
            assert targets is not None
            parts["distillation"] = Distillation(size, targets.shape[1], generator)
        self.parts = nn.ModuleDict(parts).to(self.device)
        self.batch = GlobalBatch(ranks)
        self.parameters = list(self.parts.parameters())
        self.sharded = [part for part in parts.values() if isinstance(part, ShardedHead)]
        scales = {f"stage.{name}": factor for name, factor in stage.rate_scales.items()}
        self.optimizer = build_optimizer(self.parts, self.settings, scales)
        per_epoch = len(self._batches(0)) * self.settings.repeats
        self.per_epoch, self.steps = per_epoch, round(per_epoch * self.settings.epochs)
        self.dtype = autocast_dtype(recipe.precision, self.device)
        self.scaler = _grad_scaler(ranks.several)(self.device.type, enabled=self.dtype is torch.float16)
        self._compute: Callable[..., dict[str, Tensor]] = self._losses

    def _build_heads(self, size: int, generator: torch.Generator) -> dict[str, nn.Module]:
        """One head, or one for each of several data sets."""
        if isinstance(self.faces, JointFaces):
            return {
                f"head-{at}": self._build_head(size, len(member.faces.identities), generator)
                for at, member in enumerate(self.faces.members)
            }
        return {"head": self._build_head(size, len(self.faces.identities), generator)}

    def _build_head(self, size: int, classes: int, generator: torch.Generator) -> Head | ShardedHead:
        chosen = self.settings.head
        if chosen.sample_rate < 1 or (chosen.sharded and self.ranks.several):
            return ShardedHead(
                chosen.name,
                embedding_size=size,
                classes=classes,
                ranks=self.ranks,
                sample_rate=chosen.sample_rate,
                generator=generator,
                **chosen.options,
            )
        head = build_head(chosen.name, embedding_size=size, classes=classes, generator=generator, **chosen.options)
        head.ranks = self.ranks
        return head

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The margin heads as training left them, by name; none without a margin loss."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Head | ShardedHead)}

    def _batches(self, pass_index: int, start: int = 0) -> Batches | JointBatches:
        augment = self.recipe.augment
        make = partial(JointBatches, self.faces) if isinstance(self.faces, JointFaces) else partial(Batches, self.faces)
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

    @torch.no_grad()
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
            elif isinstance(stage.trunk.first_layer, FilterBankConv):
                notes["aligned_banks"] = align_banks(stage, images, generator)
        for module in (self.method, self.parts):
            module.to(self.device)
        del images
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
            convert_layers(self.parts, self.batch)
            self._set_training()
            self._share_gradients()
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
                f"{self.run.folder}: repeat the command with --resume to go on"
            )
        return elapsed

    def _restore(self, state: Mapping[str, Any]) -> int:
        """Take up a checkpoint; returns its step."""
        step = int(state["step"])
        restore(self.run, state, self.parts, self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
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

    def _share_gradients(self) -> None:
        """With several ranks, have the gradients of all weights but a rank's own classes averaged over them.

        DistributedDataParallel sends gradients while the backward pass still runs. It wraps the step's whole forward
        pass, for a stage's forward is free to use its module as it likes; and it talks in a group of its own, so that
        its messages need not keep the order of those of batch norms and heads.
        """
        common = nn.ModuleDict({name: part for name, part in self.parts.items() if not isinstance(part, ShardedHead)})
        if self.ranks.several and any(True for _ in common.parameters()):
            # depthwise filters in channels-last have two equal descriptions, which it takes for a costly difference
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            self._compute = DistributedDataParallel(
                _ForwardPass(common, self._losses),
                process_group=dist.new_group(),
            )

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
        """One update; returns the losses, over the images of all ranks."""
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device)
        factor = rate_factor(self.settings.schedule, step, self.steps, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.optimizer.lr * group["scale"] * factor
        losses = self._compute(step, images, labels, indices)
        total = torch.stack(list(losses.values())).sum()
        values = self.ranks.sum_(torch.stack([total, *losses.values()]).detach()) / self.ranks.world
        if not bool(torch.isfinite(values[0])):
            raise RecipeError(
                f"stage {self.stage.name!r}: the loss is {values[0].item():g} at step {step}; lower "
                f"training.optimizer.lr (now {self.settings.optimizer.lr:g}) or set precision=fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        with ExitStack() as stack:
            for head in self.sharded:
                stack.enter_context(head.stepping(self.optimizer))
            self._update()
        return dict(zip(["loss", *(f"loss_{name}" for name in losses)], values.tolist(), strict=True))

    def _update(self) -> None:
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            own = [parameter for head in self.sharded for parameter in head.class_parameters().values()]
            of_rank = {id(parameter) for parameter in own}
            shared = [parameter for parameter in self.parameters if id(parameter) not in of_rank]
            clip_gradients(shared, own, self.settings.clip, self.ranks)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _losses(self, step: int, images: Tensor, labels: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """The forward pass: losses by name, weighted, over this rank's images (those of sharded heads over all)."""
        # every draw of a step follows from its number, so a resumed run repeats what an unbroken one would draw; ranks
        # share the seed, and the global batch gives each the draws of its images
        seed = (self.recipe.seed * 101 + self.index) * 1_000_003 + step
        self.batch.rows = len(images)
        draws = self.batch.generator(seed, self.device)
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None),
        ):
            # dropout layers know only the global generator
            torch.manual_seed(seed)
            outcome = self.stage.forward(images, labels, draws)
            embedding = outcome.embedding.float()
            if self.margin_weight and self.settings.dropout is not None:
                keep = 1.0 - self.settings.dropout.rate(step // max(1, self.per_epoch))
                kept = rand(embedding.shape, draws, self.device) < keep
                embedding = embedding * kept / keep
        losses = dict(outcome.losses)
        if self.distil_weight:
            assert self.targets is not None
            wanted = self.targets[indices.to(self.device)]
            if outcome.mixture is not None:
                wanted = (outcome.mixture.weights[..., None] * wanted[outcome.mixture.rows]).sum(1)
            losses["distil"] = self.distil_weight * self.parts["distillation"](outcome.embedding, wanted)
        if self.margin_weight:
            losses["margin"] = self.margin_weight * self._margin_loss(embedding, labels, outcome.mixture, seed)
        return losses

    def _margin_loss(self, embedding: Tensor, labels: Tensor, mixture: Mixture | None, seed: int) -> Tensor:
        """Cross entropy of the margin head, or the weighted sum over the heads of several data sets."""
        if not isinstance(self.faces, JointFaces):
            return self._head_loss("head", embedding, labels, mixture, seed)
        if mixture is not None:
            raise RecipeError(f"{self.method.info.name} mixes images of a batch; that needs a single data set")
        members = self.faces.members
        sizes = split_batch([member.share for member in members], len(labels))
        parts = zip(members, torch.split(embedding, sizes), torch.split(labels, sizes), strict=True)
        terms = [
            member.weight * self._head_loss(f"head-{at}", own, people - member.first_person, None, seed + at)
            for at, (member, own, people) in enumerate(parts)
        ]
        return torch.stack(terms).sum()

    def _head_loss(self, name: str, embedding: Tensor, labels: Tensor, mixture: Mixture | None, seed: int) -> Tensor:
        """Cross entropy of one head; of a mixture the weighted sum over the people in it."""
        weights = None
        if mixture is not None:
            people = mixture.rows.shape[1]
            labels, weights = labels[mixture.rows].flatten(), people * mixture.weights.flatten()
            embedding = embedding.repeat_interleave(people, 0)
        head = self.parts[name]
        if isinstance(head, ShardedHead):
            # each rank draws among its own classes
            classes = torch.Generator(self.device).manual_seed(seed * 65_537 + self.ranks.rank)
            loss: Tensor = head(embedding, labels, classes, weights)
            return loss
        if weights is None:
            return F.cross_entropy(head(embedding, labels), labels)
        return (weights * F.cross_entropy(head(embedding, labels), labels, reduction="none")).mean()

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
        state = {
            "stage": self.index,
            "step": step,
            "seconds": seconds,
            "notes": dict(notes),
            "method": self.method.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.run, self.ranks, state, self.parts, self.optimizer)


def _grad_scaler(several: bool) -> type[torch.amp.GradScaler]:
    """The scaler for a rank: an overflow in the classes of one rank must be one for all."""
    if not several:
        return torch.amp.GradScaler
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # half a second, for several ranks only

    return ShardedGradScaler


class _ForwardPass(nn.Module):
    """What DistributedDataParallel wants: one module whose forward pass uses the weights that it holds."""

    def __init__(self, parts: nn.ModuleDict, losses: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.parts = parts
        self.losses = losses

    def forward(self, *batch: Any) -> dict[str, Tensor]:
        losses = self.losses(*batch)
        # some weights may serve other payloads than these; it waits for a gradient of each, so they get one of zeros
        name, loss = next(iter(losses.items()))
        touched = torch.stack([weight.flatten()[0] for weight in self.parts.parameters()])
        return losses | {name: loss + 0 * touched.sum()}
