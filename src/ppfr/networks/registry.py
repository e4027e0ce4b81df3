"""Backbones by name."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch

from ppfr.errors import MethodError
from ppfr.networks import iresnet, mobilefacenet
from ppfr.networks.base import Backbone, reset_weights
from ppfr.networks.iresnet import IResNet
from ppfr.networks.mobilefacenet import MobileFaceNet


class _Builder(Protocol):
    def __call__(
        self, *, in_channels: int, embedding_size: int, width: float, input_size: tuple[int, int]
    ) -> Backbone: ...


_BUILDERS: dict[str, _Builder] = {
    **{name: partial(IResNet, name, plan) for name, plan in iresnet.PLANS.items()},
    **{name: partial(MobileFaceNet, name, plan) for name, plan in mobilefacenet.PLANS.items()},
}
_DEFAULTS = {name: (plan.embedding_size, plan.input_size) for name, plan in mobilefacenet.PLANS.items()}


def backbone_names() -> list[str]:
    """Names for `build_backbone`: `ir*`, `ir-se*` (TFace, AdaFace), `r*` (InsightFace), `mobilefacenet*`."""
    return list(_BUILDERS)


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    embedding_size: int | None = None,
    width: float = 1.0,
    input_size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Backbone:
    """Build a backbone with fresh weights on the CPU, in training mode.

    `width` multiplies every channel count but the embedding's, in multiples of 8. `embedding_size` and
    `input_size` (height, width) default to the named network's own: 512 and 112x112, for `mobilefacenet-96`
    128 and 112x96. Weights are drawn from `generator`, by default one seeded with 0. Raises MethodError.
    """
    if name not in _BUILDERS:
        raise MethodError(f"unknown backbone {name!r}; expected one of {', '.join(_BUILDERS)}")
    default_embedding, default_input = _DEFAULTS.get(name, (512, (112, 112)))
    embedding_size = default_embedding if embedding_size is None else embedding_size
    input_size = default_input if input_size is None else input_size
    _check("in_channels", in_channels, 1)
    _check("embedding_size", embedding_size, 1)
    _check("width", width, 1 / 64)
    for side in input_size:
        _check("input_size", side, 16)
    backbone = empty_backbone(
        name, in_channels=in_channels, embedding_size=embedding_size, width=width, input_size=input_size
    )
    backbone.to_empty(device="cpu")
    reset_weights(backbone, generator if generator is not None else torch.Generator().manual_seed(0))
    return backbone


def empty_backbone(
    name: str, *, in_channels: int, embedding_size: int, width: float, input_size: tuple[int, int]
) -> Backbone:
    """Build a backbone on the meta device: names and shapes without values, so nothing is drawn at random."""
    with torch.device("meta"):
        return _BUILDERS[name](
            in_channels=in_channels, embedding_size=embedding_size, width=width, input_size=input_size
        )


def _check(argument: str, value: float, least: float) -> None:
    if not value >= least:
        raise MethodError(f"{argument} is {value}; expected at least {least:g}")
