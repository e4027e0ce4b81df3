"""One batch spread over ranks that computes as if it lay on one: random draws, batch norms, means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppfr.distributed.process_group import Ranks

_CURRENT: ContextVar[Ranks | None] = ContextVar("ranks of the global batch", default=None)


def global_batch(ranks: Ranks, rows: int) -> AbstractContextManager[object]:
    """A block in which a forward pass over `rows` images of this rank takes part in one over all ranks' images.

    The global batch holds image `i` of rank `r` at position `i * world + r`, as `ppfr.data.batches` deals them out.

    - A draw (`torch.rand`, `randn`, `randint`, `bernoulli`, dropout) whose first axis counts images, or a multiple of
      them, is drawn for the whole batch, the same on every rank, and each rank takes its images' rows: the draw
      belongs to the image's place in the batch. Any other draw is common to all ranks. Generators must be seeded alike.
    - A batch norm in training mode normalises by the mean and variance over all ranks and moves its running
      statistics by them. (torch.nn.SyncBatchNorm does the same on GPUs only.)
    - `batch_mean` is the mean over all ranks.

    Alone it does nothing at all.
    """
    return _GlobalBatch(ranks, rows) if ranks.several else nullcontext()


def batch_mean(mean: Tensor) -> Tensor:
    """A mean over this rank's images as the mean over the whole batch, with gradient.

    For losses that are no plain mean over images, such as a ratio of two means; a plain mean needs no help.
    """
    ranks = _CURRENT.get()
    return mean if ranks is None else ranks.mean_with_gradient(mean)


class _GlobalBatch(TorchFunctionMode):
    def __init__(self, ranks: Ranks, rows: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.rows = rows

    def __enter__(self) -> _GlobalBatch:
        self._token = _CURRENT.set(self.ranks)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _CURRENT.reset(self._token)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.rand, torch.randn):
            return self._drawn(func, (), args if given.get("size") is None else (given.pop("size"),), given)
        if func is torch.randint:
            limits, shape = _split_randint(args, given)
            return self._drawn(func, limits, (shape,), given)
        if func in (torch.bernoulli, F.dropout):
            return self._masked(func, args, given)
        if func is F.batch_norm:
            return _normalise(self.ranks, *args, **given)
        return func(*args, **given)

    def _drawn(self, func: Callable[..., Tensor], before: tuple[Any, ...], size: Sequence[Any], given: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], Sequence) else tuple(size)
        if not shape or not shape[0] or shape[0] % self.rows:
            return func(*before, shape, **given)
        return self._mine(func(*before, (shape[0] * self.ranks.world, *shape[1:]), **given))

    def _mine(self, drawn: Tensor) -> Tensor:
        each = len(drawn) // (self.rows * self.ranks.world)
        images = drawn.reshape(-1, each, *drawn.shape[1:])
        return images[self.ranks.rank :: self.ranks.world].flatten(0, 1)

    def _masked(self, func: Callable[..., Tensor], args: Sequence[Any], given: dict[str, Any]) -> Tensor:
        """Draws over a tensor that is there already: `bernoulli` of probabilities, dropout of activations."""
        values: Tensor = args[0] if args else given.pop("input")
        rest = args[1:]
        training = func is torch.bernoulli or given.get("training", rest[1] if len(rest) > 1 else True)
        if not training or not values.ndim or not len(values) or len(values) % self.rows:
            untouched: Tensor = func(values, *rest, **given)
            return untouched
        if func is torch.bernoulli:
            drawn = self._drawn(torch.rand, (), (values.shape,), {**given, "device": values.device})
            return (drawn < values).to(values.dtype)
        layout = torch.channels_last if values.ndim == 4 and _is_channels_last(values) else torch.contiguous_format
        everyone = values.new_ones((len(values) * self.ranks.world, *values.shape[1:])).contiguous(memory_format=layout)
        rate = given.get("p", rest[0] if rest else 0.5)
        kept: Tensor = values * self._mine(F.dropout(everyone, rate, True))
        return kept


def _is_channels_last(values: Tensor) -> bool:
    return values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()


def _split_randint(args: Sequence[Any], given: dict[str, Any]) -> tuple[tuple[int, ...], Sequence[int]]:
    """The limits and the shape of a call of `torch.randint`, which takes them in several ways."""
    values = list(args)
    shape = given.pop("size") if "size" in given else values.pop()
    low = given.pop("low", None)
    high = given.pop("high", None)
    return tuple(limit for limit in (low, *values, high) if limit is not None), shape


def _normalise(
    ranks: Ranks,
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over the images of all ranks."""
    if not training:
        return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [0, *range(2, values.ndim)]
    with torch.no_grad():
        count = values.numel() // values.shape[1]
        var, mean = torch.var_mean(_wide(values), axes, correction=0)
        # every rank holds equally many images
        means, variances = ranks.gather(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        total = count * ranks.world
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * total / max(1, total - 1)).to(running_var.dtype), momentum)
    normalised: Tensor = _BatchNorm.apply(values, weight, bias, mean, var, eps, ranks)  # type: ignore[no-untyped-call]
    return normalised


def _wide(values: Tensor) -> Tensor:
    """In a type that sums can be taken in."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _BatchNorm(torch.autograd.Function):
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
