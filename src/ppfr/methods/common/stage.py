"""Stages of training: what learns, what a forward pass returns, and how a stage starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppfr.networks import Backbone


@dataclass
class Mixture:
    """Which rows of the batch each embedding stands for, `rows` (B,k), and to what share, `weights` (B,k) of sum 1."""

    rows: Tensor
    weights: Tensor


@dataclass
class TrainingStep:
    """What a stage's forward pass gives the loop: embeddings (B,D) and further losses by name, already weighted.

    An embedding stands for its own row of the batch, unless `mixture` says otherwise.
    """

    embedding: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    mixture: Mixture | None = None


@dataclass
class TrunkInput:
    """A sample of the input of a trunk's first layer (B,C,H,W), and the filter bank (B,) that each row is meant for."""

    features: Tensor
    bank: Tensor | None = None


@dataclass
class Stage:
    """One step of a method's training: what learns, what it computes, and where a warm start may begin.

    `module` learns; the rest of the method stays frozen and in evaluation mode. `trunk` is the recogniser inside it
    whose weights may come from a teacher, and `trunk_input` shows the loop what that trunk's first layer sees; it,
    `calibrate` and `after_warm_start` run without gradients.
    `rate_scales` are factors on the learning rate of submodules or parameters of `module`, by name. With
    `continues_head` the margin head goes on as the previous stage left it instead of starting anew.
    """

    name: str
    module: nn.Module
    forward: Callable[[Tensor, Tensor, torch.Generator], TrainingStep]
    embedding_size: int
    trunk: Backbone | None = None
    trunk_input: Callable[[Tensor, torch.Generator], TrunkInput] | None = None
    calibrate: Callable[[Tensor, torch.Generator], None] | None = None
    after_warm_start: Callable[[Tensor, torch.Generator], None] | None = None
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    continues_head: bool = False
    sample: int = 0


__all__ = ["Mixture", "Stage", "TrainingStep", "TrunkInput"]
