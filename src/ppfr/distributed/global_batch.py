"""A batch that is spread over ranks and computes as if it lay on one: random draws, batch norm, dropout, means.

The global batch holds image `i` of rank `r` at position `i * world + r`, as `ppfr.data.batches` deals images out. With
the same seed, losses, statistics and gradients are those of one process that holds the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.distributed.process_group import Ranks


@dataclass
class GlobalBatch:
    """The batch of one step over all `ranks`, of which this rank holds `rows` images."""

    ranks: Ranks
    rows: int = 0

    def generator(self, seed: int, device: torch.device) -> torch.Generator:
        """A generator for the draws of one step; `seed` must be the same on all ranks."""
        generator = BatchGenerator(device) if self.ranks.several else torch.Generator(device)
        if isinstance(generator, BatchGenerator):
            generator.batch = self
        return generator.manual_seed(seed)

    def holds(self, length: int) -> bool:
        """Whether a first axis of this length counts the images of this rank, or a multiple of them."""
        return self.ranks.several and length > 0 and length % self.rows == 0

    def own(self, values: Tensor) -> Tensor:
        """The rows of this rank's images among those of the whole batch, several consecutive rows an image if so."""
        each = len(values) // (self.rows * self.ranks.world)
        images = values.reshape(-1, each, *values.shape[1:])
        return images[self.ranks.rank :: self.ranks.world].flatten(0, 1)


class BatchGenerator(torch.Generator):
    """A generator that knows the global batch its draws belong to; `rand`, `randn` and `randint` ask it."""

    batch: GlobalBatch


# --- draws ------------------------------------------------------------------------------------------------------------
# A draw whose first axis counts images is made for the whole batch, alike on every rank, and each rank takes the rows
# of its images: it belongs to an image's place in the global batch. Any other draw is common to all ranks.


def rand(shape: Sequence[int], generator: torch.Generator, device: torch.device | str | None = None) -> Tensor:
    """Uniform draws in [0,1), float32 of a shape whose first axis counts images."""
    whole, batch = _whole(shape, generator)
    return _own(torch.rand(whole, generator=generator, device=device or generator.device), batch)


def randn(
    shape: Sequence[int],
    generator: torch.Generator,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal draws of a shape whose first axis counts images."""
    whole, batch = _whole(shape, generator)
    return _own(torch.randn(whole, generator=generator, device=device or generator.device, dtype=dtype), batch)


def randint(
    high: int, shape: Sequence[int], generator: torch.Generator, device: torch.device | str | None = None
) -> Tensor:
    """Uniform integers 0..high-1, int64 of a shape whose first axis counts images."""
    whole, batch = _whole(shape, generator)
    return _own(torch.randint(high, whole, generator=generator, device=device or generator.device), batch)


def batch_mean(mean: Tensor, generator: torch.Generator) -> Tensor:
    """A mean over this rank's images as the mean over the global batch of `generator`, with gradient.

    For losses that are no plain mean over images, such as a ratio of two means; a plain mean needs no help.
    """
    return generator.batch.ranks.mean_with_gradient(mean) if isinstance(generator, BatchGenerator) else mean


def _whole(shape: Sequence[int], generator: torch.Generator) -> tuple[tuple[int, ...], GlobalBatch | None]:
    batch = generator.batch if isinstance(generator, BatchGenerator) else None
    if batch is None or not shape or not batch.holds(shape[0]):
        return tuple(shape), None
    return (shape[0] * batch.ranks.world, *shape[1:]), batch


def _own(drawn: Tensor, batch: GlobalBatch | None) -> Tensor:
    return drawn if batch is None else batch.own(drawn)


# --- layers that look at the whole batch ----------------------------------------------------------------------------
def convert_layers(module: nn.Module, batch: GlobalBatch) -> None:
    """Replace every batch norm and dropout below `module` by one over the global batch; weights stay the same objects.

    In evaluation mode, and in state dicts, nothing changes. (torch's SyncBatchNorm does this for GPUs only.)
    """
    if not batch.ranks.several:
        return
    replaced: dict[int, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            kind = _CONVERTED.get(type(child))
            if kind is not None:
                if id(child) not in replaced:
                    layer = kind.__new__(kind)
                    # the same tables of parameters and buffers, so that both names lead to the same weights
                    layer.__dict__ = {**child.__dict__, "batch": batch}
                    replaced[id(child)] = layer
                setattr(parent, name, replaced[id(child)])


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of (B,C) or (B,C,L) by mean and variance over the images of all ranks."""

    batch: GlobalBatch

    def forward(self, values: Tensor) -> Tensor:
        return _batch_norm(self, values) if self.training else super().forward(values)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of (B,C,H,W) by mean and variance over the images of all ranks."""

    batch: GlobalBatch

    def forward(self, values: Tensor) -> Tensor:
        return _batch_norm(self, values) if self.training else super().forward(values)


class GlobalDropout(nn.Dropout):
    """Dropout whose draws, from torch's global generator, are for the whole batch."""

    batch: GlobalBatch

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.batch.holds(len(values)):
            return super().forward(values)
        last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last and not values.is_contiguous() else torch.contiguous_format
        shape = (len(values) * self.batch.ranks.world, *values.shape[1:])
        kept = F.dropout(values.new_ones(shape).contiguous(memory_format=layout), self.p, True)
        return values * self.batch.own(kept)


_CONVERTED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.Dropout: GlobalDropout,
}


def _batch_norm(layer: GlobalBatchNorm1d | GlobalBatchNorm2d, values: Tensor) -> Tensor:
    ranks = layer.batch.ranks
    axes = [0, *range(2, values.ndim)]
    with torch.no_grad():
        count = values.numel() // values.shape[1]
        var, mean = torch.var_mean(_wide(values), axes, correction=0)
        # every rank holds equally many images
        means, variances = ranks.gather(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        total = count * ranks.world
        if layer.running_mean is not None and layer.running_var is not None:
            momentum = 0.1 if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            layer.running_var.lerp_((var * total / max(1, total - 1)).to(layer.running_var.dtype), momentum)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
    normalised: Tensor = _Normalise.apply(values, layer.weight, layer.bias, mean, var, layer.eps, ranks)  # type: ignore[no-untyped-call]
    return normalised


def _wide(values: Tensor) -> Tensor:
    """In a type that sums can be taken in."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _Normalise(torch.autograd.Function):
    """Normalisation by given statistics of the global batch, with their share in the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, (var + eps).rsqrt())
        ctx.ranks = ranks
        return F.batch_norm(values, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, scale = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        axes = [0, *range(2, values.ndim)]
        column = (1, -1, *([1] * (values.ndim - 2)))
        gradient = _wide(gradients[0])
        standard = (_wide(values) - mean.view(column)) * scale.view(column)
        sums = torch.stack([gradient.sum(axes), (gradient * standard).sum(axes)])
        own_bias, own_weight = sums.clone().unbind()
        total = values.numel() // values.shape[1] * ranks.world
        for_mean, for_scale = (ranks.sum_(sums) / total).unbind()
        inner = gradient - for_mean.view(column) - standard * for_scale.view(column)
        slope = scale if weight is None else scale * weight
        result = (inner * slope.view(column)).to(values.dtype)
        affine = weight is not None
        return result, own_weight if affine else None, own_bias if affine else None, None, None, None, None
