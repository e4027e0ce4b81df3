"""One update of all weights that learn, on one rank or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppfr.distributed.process_group import Ranks
from ppfr.heads import ShardedHead
from ppfr.recipes.recipe import StageSettings
from ppfr.training.optimizer import build_optimizer, clip_gradients


class Updater:
    """The optimiser's side of a step: rates, gradients over ranks, clipping, loss scaling, and the update itself.

    `parts` are all modules that learn, of which sharded heads belong to one rank each. `rate_scales` are factors on the
    learning rate by parameter name, `dtype` is what the network computes in.
    """

    def __init__(
        self,
        parts: nn.ModuleDict,
        settings: StageSettings,
        rate_scales: Mapping[str, float],
        ranks: Ranks,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.parts, self.settings, self.ranks = parts, settings, ranks
        self.parameters = list(parts.parameters())
        self.sharded = [part for part in parts.values() if isinstance(part, ShardedHead)]
        self.optimizer = build_optimizer(parts, settings, rate_scales)
        self.scaler = _grad_scaler(ranks.several)(device.type, enabled=dtype is torch.float16)

    def shared(self, losses: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """`losses`, with the gradients of all weights but a rank's own classes averaged over the ranks.

        DistributedDataParallel sends gradients while the backward pass still runs. It wraps the step's whole forward
        pass, because a stage's forward is free to use its module as it likes; it has a group of its own, so that its
        messages need not keep the order of those of batch norms and heads.
        """
        common = nn.ModuleDict({name: part for name, part in self.parts.items() if not isinstance(part, ShardedHead)})
        if not self.ranks.several or not any(True for _ in common.parameters()):
            return losses
        # depthwise filters in channels-last have two equal descriptions, which it takes for a costly difference
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        return DistributedDataParallel(_ForwardPass(common, losses), process_group=dist.new_group())

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to its own, times `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.optimizer.lr * group["scale"] * factor

    def step(self, total: Tensor) -> None:
        """Move the weights down the gradient of a loss (scalar)."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        with ExitStack() as stack:
            for head in self.sharded:
                stack.enter_context(head.stepping(self.optimizer))
            if self.settings.clip is not None:
                self.scaler.unscale_(self.optimizer)
                own = [parameter for head in self.sharded for parameter in head.class_parameters().values()]
                of_rank = {id(parameter) for parameter in own}
                shared = [parameter for parameter in self.parameters if id(parameter) not in of_rank]
                clip_gradients(shared, own, self.settings.clip, self.ranks)
            self.scaler.step(self.optimizer)
            self.scaler.update()


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
