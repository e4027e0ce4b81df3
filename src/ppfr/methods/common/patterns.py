"""Patterns that a frozen network takes for an image: the optimiser of PrivacyHFR's DRA step and of AVIH (ICCV 2023).

A pattern starts as noise and goes down the gradient of a sum of loss terms, one pattern for each image. Terms are
composable: DRA has one, `EmbeddingMatch`; AVIH adds terms of its own and keeps the update.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ppfr.util.errors import CheckpointError, MethodError, ShapeError
from ppfr.util.progress import progress_callback
from ppfr.util.tensorfiles import write_tensors

CPU_BATCH = 8
GPU_BATCH = 256
_FORMAT = "1"


class Judged(NamedTuple):
    """What a loss term says of n patterns: the loss of each (n,), and the cosine of their embeddings (n,) if known."""

    loss: Tensor
    cosine: Tensor | None = None


class LossTerm(Protocol):
    """Judges patterns (n,C,h,w), those of images number `rows` (n,); each loss depends on its own pattern alone."""

    def __call__(self, patterns: Tensor, rows: Tensor) -> Judged: ...


class EmbeddingMatch:
    """Mean squared difference between a pattern's embedding and its image's (PrivacyHFR, DRA step).

    `network` maps patterns (n,C,h,w) to embeddings (n,D) and is used as it is: give a copy for inference whose weights
    need no gradient. `targets` (N,D) are the images' embeddings.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], targets: Tensor) -> None:
        # attached to the graph that made it, the target would be differentiated at every step
        self.network, self.targets = network, targets.detach()

    def __call__(self, patterns: Tensor, rows: Tensor) -> Judged:
        embedding, target = self.network(patterns), self.targets[rows]
        cosine = F.cosine_similarity(embedding.detach(), target)
        return Judged((embedding - target).square().mean(1), cosine)


@dataclass(frozen=True)
class UpdateRule:
    """How patterns move: the gradient over its mean magnitude, with momentum, in steps that shrink as the loss rises.

    g = gradient / mean |gradient| per pattern; s = momentum * s + g; pattern = clamp(pattern - step * s, 0, 1); each
    time a pattern's loss has risen `patience` times its step is multiplied by `decay`. A pattern is finished after
    `iterations` updates, or as soon as its embedding's cosine to the image's is at least `stop_at`.
    """

    iterations: int = 800
    stop_at: float | None = None
    step: float = 0.02
    momentum: float = 0.3
    decay: float = 0.85
    patience: int = 16


@dataclass
class Patterns:
    """Patterns (N,C,h,w) under optimisation and the books kept of each; `cosine` is NaN where no term knows it.

    `loss` and `cosine` (N,) are those of the patterns as they are once `finished` (N,) holds; `updates` (N,) counts the
    steps taken.
    """

    pattern: Tensor
    velocity: Tensor
    step: Tensor
    rises: Tensor
    updates: Tensor
    loss: Tensor
    cosine: Tensor
    finished: Tensor

    @classmethod
    def begin(cls, start: Tensor, step: float) -> Self:
        """The books before the first update."""
        rows = len(start)
        return cls(
            pattern=start.clone(),
            velocity=torch.zeros_like(start),
            step=start.new_full((rows,), step),
            rises=torch.zeros(rows, dtype=torch.int64, device=start.device),
            updates=torch.zeros(rows, dtype=torch.int64, device=start.device),
            loss=start.new_full((rows,), torch.inf),
            cosine=start.new_full((rows,), torch.nan),
            finished=torch.zeros(rows, dtype=torch.bool, device=start.device),
        )

    def save(self, path: Path, key: str) -> None:
        """Write all books, atomically; `key` says what they belong to."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        write_tensors(path, tensors, {"ppfr-patterns": _FORMAT, "key": key})

    @classmethod
    def load(cls, path: Path, key: str, device: torch.device) -> Self:
        """Read what `save` wrote; raises CheckpointError for a foreign file or another `key`."""
        try:
            with safe_open(path, framework="pt") as stream:
                header = stream.metadata() or {}
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; remove it to begin anew") from error
        if header.get("ppfr-patterns") != _FORMAT or header.get("key") != key:
            raise CheckpointError(
                f"{path} was begun with other images, weights or settings; resume with the same, or remove it to begin "
                "anew"
            )
        return cls(**{name: tensor.to(device) for name, tensor in tensors.items()})


def find_patterns(
    start: Tensor,
    terms: Sequence[LossTerm],
    rule: UpdateRule,
    *,
    batch_size: int | None = None,
    state_file: Path | None = None,
    key: str = "",
    save_seconds: float = 60.0,
    title: str = "patterns",
) -> Patterns:
    """Optimise one pattern for each row of `start` (N,C,h,w), noise, under the sum of `terms`.

    `batch_size` patterns are worked on at a time (8 on a CPU, else 256); one that is finished makes room for the next.
    With `state_file` the books are written there every `save_seconds`; when the file exists already the search goes on
    from it, not from `start`, exactly as if it had never stopped, provided that `key`, `rule` and the shape of `start`
    are those it began with: else CheckpointError. The file is removed in the end. Raises MethodError for a loss that is
    not finite, or `stop_at` without a term that knows cosines. Runs inside `torch.inference_mode` too.
    """
    if start.ndim != 4 or not start.is_floating_point():
        raise ShapeError(f"start is {start.dtype} of shape {tuple(start.shape)}; expected floats (N, C, h, w)")
    if batch_size is None:
        batch_size = CPU_BATCH if start.device.type == "cpu" else GPU_BATCH
    with torch.inference_mode(False):
        books = Patterns.begin(start, rule.step)
        seal = hashlib.sha256(json.dumps([key, asdict(rule), list(start.shape)]).encode()).hexdigest()
        if state_file is not None and state_file.exists():
            books = Patterns.load(state_file, seal, start.device)
        saved = time.monotonic()
        with progress_callback(title) as progress:
            while len(rows := (~books.finished).nonzero().flatten()[:batch_size]):
                _advance(books, rows, terms, rule)
                progress(_done(books, rule), len(start) * rule.iterations)
                if state_file is not None and time.monotonic() - saved > save_seconds:
                    books.save(state_file, seal)
                    saved = time.monotonic()
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    return books


def _done(books: Patterns, rule: UpdateRule) -> int:
    """Updates taken; those that an early stop has saved count as taken."""
    return int(torch.where(books.finished, rule.iterations, books.updates).sum())


def _advance(books: Patterns, rows: Tensor, terms: Sequence[LossTerm], rule: UpdateRule) -> None:
    """Judge the patterns of `rows` and update those that are not finished."""
    pattern, updates = books.pattern[rows], books.updates[rows]
    last = updates >= rule.iterations
    learns = not bool(last.all())
    with torch.set_grad_enabled(learns):
        # terms see a view: hooks that count a network's operations cannot sit on a leaf that goes straight into it
        shown = pattern.requires_grad_(learns).view_as(pattern)
        judged = [term(shown, rows) for term in terms]
        loss = torch.stack([found.loss for found in judged]).sum(0)
    cosine = next((found.cosine for found in judged if found.cosine is not None), None)
    _check(loss, cosine, rule)
    finished = last
    if cosine is not None:
        books.cosine[rows] = cosine
        if rule.stop_at is not None:
            # the noise it began with is no pattern: it leaves [0, 1]
            finished = last | ((cosine >= rule.stop_at) & (updates > 0))
    rises = books.rises[rows] + (loss.detach() > books.loss[rows])
    books.loss[rows], books.finished[rows] = loss.detach(), finished
    if not learns:
        return
    (gradient,) = torch.autograd.grad(loss.sum(), pattern)
    moving = ~finished
    rows, gradient, rises = rows[moving], gradient[moving], rises[moving]
    magnitude = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    velocity = rule.momentum * books.velocity[rows] + gradient / magnitude
    patient = rises < rule.patience
    step = torch.where(patient, books.step[rows], books.step[rows] * rule.decay)
    books.pattern[rows] = (pattern.detach()[moving] - step[:, None, None, None] * velocity).clamp_(0, 1)
    books.velocity[rows], books.step[rows] = velocity, step
    books.rises[rows] = torch.where(patient, rises, 0)
    books.updates[rows] += 1


def _check(loss: Tensor, cosine: Tensor | None, rule: UpdateRule) -> None:
    if not bool(torch.isfinite(loss).all()):
        raise MethodError(f"a pattern's loss is {loss.detach().max().item():g}; expected finite: check the weights")
    if cosine is None and rule.stop_at is not None:
        raise MethodError(f"stop_at is {rule.stop_at:g}, but no loss term knows a cosine; leave it out, or add one")
