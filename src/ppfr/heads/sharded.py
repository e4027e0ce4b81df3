"""Heads for many identities: class centres sharded over ranks, and losses over a sample of them (PartialFC)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppfr.distributed.process_group import Ranks
from ppfr.heads.base import KERNEL_DEVIATION
from ppfr.heads.registry import build_head
from ppfr.util.errors import MethodError

# rows of a kernel drawn at once: the stream of normal numbers is the same in blocks of 16 values as in one piece
_CHUNK = 16


class ShardedHead(nn.Module):
    """Any head of `build_head` with its centres sharded over ranks and, optionally, a sample of them in each loss.

    Rank r keeps the classes of `class_range`, one row each in `centres` (n, embedding_size), and sees the embeddings of
    all ranks. The softmax is over the classes of all ranks: two small messages, the largest logit of each image and the
    sum of exponentials (as ArcFace, Deng et al., CVPR 2019, section 2.2 "parallel acceleration"; TFace's DistFC). The
    loss and the gradients are those of the whole head.

    With `sample_rate` below 1 each rank contributes the classes of the batch and random others, in total that share of
    its classes (An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face
    Recognition CNNs by Partial FC", CVPR 2022, section 3.3). Only these rows and their optimizer state move, in the
    block of `stepping`.

    The rows drawn from `generator` are those that the whole head would draw. Raises MethodError for a rate outside
    (0, 1], for fewer classes than ranks, and as `build_head` does.
    """

    centres: nn.Parameter

    def __init__(
        self,
        name: str,
        *,
        embedding_size: int,
        classes: int,
        ranks: Ranks = Ranks(),
        sample_rate: float = 1.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise MethodError(f"sample_rate is {sample_rate}; expected above 0, at most 1")
        if classes < ranks.world:
            raise MethodError(f"{classes} classes cannot be sharded over {ranks.world} ranks; use fewer ranks")
        self.embedding_size, self.classes, self.ranks, self.sample_rate = embedding_size, classes, ranks, sample_rate
        self.first, self.last = class_range(classes, ranks)
        # the formula alone: its one class is never used
        self.formula = build_head(name, embedding_size=embedding_size, classes=1, **options)
        biased = "bias" in self.formula._parameters
        for own in list(self.formula._parameters):
            delattr(self.formula, own)
        self.centres = nn.Parameter(_draw_centres(embedding_size, classes, self.first, self.last, generator))
        self.bias = nn.Parameter(torch.zeros(self.last - self.first)) if biased else None
        self._rows: Tensor | None = None
        self._sampled: dict[str, Tensor] = {}

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters with one row for each class of this rank, by name."""
        return dict(self.named_parameters(recurse=False))

    @property
    def rows(self) -> Tensor | None:
        """Positions in `centres` that the last loss was taken over, sorted; None for all."""
        return self._rows

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy over the images of all ranks, the same scalar on each; every rank must call.

        `embeddings` (B, embedding_size) and `labels` int64 (B,) are this rank's, equally many on each. `generator`
        draws the sample of classes; ranks should seed theirs differently. `weights` (B,) multiply the images' terms.
        Raises ShapeError, and MethodError without a generator for a sample.
        """
        self.formula.check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = self.ranks.gather_with_gradient(embeddings.to(self.centres.dtype))
            labels = self.ranks.gather(labels)
            owned = (labels >= self.first) & (labels < self.last)
            at = labels - self.first
            own = self._active_rows(at[owned], generator)
            if self._rows is not None:
                at = torch.searchsorted(self._rows, at)
            # the index of an image whose class lies on another rank is arbitrary: its entry is masked
            at = torch.where(owned, at, 0)[:, None]
            logits = self._logits(embeddings, own, at, owned[:, None])
            shares = torch.ones_like(labels, dtype=logits.dtype) if weights is None else self.ranks.gather(weights)
            shares = shares[:, None].to(logits.dtype) / len(labels)
            loss: Tensor = _CrossEntropy.apply(logits, at, owned[:, None], shares, self.ranks)  # type: ignore[no-untyped-call]
            return loss

    def _logits(self, embeddings: Tensor, own: dict[str, Tensor], at: Tensor, owned: Tensor) -> Tensor:
        formula = self.formula
        scores = formula.scores(embeddings, own["centres"].T, own.get("bias"))
        target = scores.gather(1, at)
        everyones = self.ranks.sum_(torch.where(owned, target.detach(), 0))
        formula.observe(everyones, embeddings)
        negatives = formula.negatives(scores, everyones)
        at_target = torch.where(owned, formula.positives(target, embeddings), negatives.gather(1, at))
        return formula.scale * negatives.scatter(1, at, at_target)

    def _active_rows(self, positives: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The classes in this loss, with gradients: all of them, or a sample that contains `positives`."""
        parameters: dict[str, Tensor] = dict(self.class_parameters())
        if self.sample_rate == 1:
            return parameters
        if generator is None:
            raise MethodError("a head with sample_rate below 1 needs a generator to draw its classes from")
        self._rows = sample_rows(positives, self.last - self.first, self.sample_rate, generator)
        self._sampled = {
            name: parameter.detach()[self._rows].requires_grad_(parameter.requires_grad)
            for name, parameter in parameters.items()
        }
        return self._sampled

    @contextmanager
    def stepping(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Context in which parameters, gradients and optimizer state are restricted to the rows of the last loss.

        Clip and step inside. Without sampling it changes nothing. Adam's count of steps, for its bias
        correction, is one for all rows.
        """
        if self._rows is None:
            yield
            return
        whole: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        for name, parameter in self.class_parameters().items():
            state = optimizer.state.get(parameter, {})
            kept = {key: value for key, value in state.items() if _is_per_class(value, parameter)}
            whole[name] = parameter.data, kept
            state.update({key: value[self._rows] for key, value in kept.items()})
            parameter.data, parameter.grad = parameter.data[self._rows], self._sampled[name].grad
        try:
            yield
        finally:
            for name, parameter in self.class_parameters().items():
                values, kept = whole[name]
                state = optimizer.state.get(parameter, {})
                for key, moved in list(state.items()):
                    if _is_per_class(moved, parameter):
                        # the first step makes the state, for the sampled rows alone
                        state[key] = kept[key] if key in kept else torch.zeros_like(values)
                        state[key][self._rows] = moved
                values[self._rows] = parameter.data
                parameter.data, parameter.grad = values, None
            self._sampled = {}

    def extra_repr(self) -> str:
        return f"classes {self.first}..{self.last - 1} of {self.classes}, sample_rate={self.sample_rate:g}"


def class_range(classes: int, ranks: Ranks) -> tuple[int, int]:
    """First class of a rank and one past its last: consecutive, with sizes that differ by at most one."""
    return ranks.rank * classes // ranks.world, (ranks.rank + 1) * classes // ranks.world


def sample_rows(positives: Tensor, count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Choose ceil(rate * count) of `count` classes, sorted, with all of `positives` among them.

    More are chosen only where `positives` are more.
    """
    present = torch.unique(positives)
    chance = torch.rand(count, generator=generator, device=generator.device).to(present.device)
    chance[present] = 2.0
    return chance.topk(max(math.ceil(rate * count), len(present))).indices.sort().values


def _is_per_class(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _draw_centres(size: int, classes: int, first: int, last: int, generator: torch.Generator | None) -> Tensor:
    """Rows first..last-1 of the transposed (size, classes) kernel that a whole head draws, a few of its rows at a time.

    So a rank needs memory for its own classes only.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    centres = torch.empty(last - first, size)
    start = 0
    while start < size:
        # the last piece must not be shorter than a block
        stop = start + _CHUNK if size - start >= 2 * _CHUNK else size
        drawn = torch.empty(stop - start, classes).normal_(0.0, KERNEL_DEVIATION, generator=generator)
        centres[:, start:stop] = drawn[:, first:last].T
        start = stop
    return centres


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of logits (B, n), each times its weight (B, 1), whose classes lie on several ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, at: Tensor, owned: Tensor, weights: Tensor, ranks: Ranks) -> Tensor:
        top = ranks.max_(logits.amax(1, keepdim=True))
        chances = (logits - top).exp_()
        target = torch.where(owned, logits.gather(1, at) - top, 0)
        sums = ranks.sum_(torch.cat([chances.sum(1, keepdim=True), target], 1))
        total, target = sums[:, :1], sums[:, 1:]
        ctx.save_for_backward(chances.div_(total), at, owned, weights)
        loss: Tensor = (weights * (total.log() - target)).sum()
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        chances, at, owned, weights = ctx.saved_tensors
        weights = weights * gradients[0]
        gradient = (chances * weights).scatter_add_(1, at, torch.where(owned, -weights, 0))
        return gradient, None, None, None, None
