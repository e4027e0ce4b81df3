"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ppfr.networks import iresnet, lightcnn, mobilefacenet
from ppfr.networks.base import Backbone, Dimensions, initialised
from ppfr.networks.iresnet import IResNet
from ppfr.networks.lightcnn import LightCNN
from ppfr.networks.mobilefacenet import MobileFaceNet
from ppfr.util.errors import MethodError

_BUILDERS: dict[str, Callable[[Dimensions], Backbone]] = {
    **{name: partial(IResNet, name, plan) for name, plan in iresnet.PLANS.items()},
    **{name: partial(MobileFaceNet, name, plan) for name, plan in mobilefacenet.PLANS.items()},
    **{name: partial(LightCNN, name, plan) for name, plan in lightcnn.PLANS.items()},
}
_DEFAULT = Dimensions(in_channels=3, embedding_size=512, width=1.0, input_size=(112, 112))
_DEFAULTS = {
    "mobilefacenet-96": replace(_DEFAULT, embedding_size=128, input_size=(112, 96)),
    "lightcnn-29v2": replace(_DEFAULT, in_channels=1, embedding_size=256, input_size=(128, 128)),
    "lightcnn-29v4": replace(_DEFAULT, embedding_size=256, input_size=(128, 128)),
}


def backbone_names() -> list[str]:
    """Names for `build_backbone`.

    `ir*` and `ir-se*` as in TFace and AdaFace, `r*` as in InsightFace, `mobilefacenet*`, `lightcnn-*`.
    """
    return list(_BUILDERS)


def default_input_size(name: str) -> tuple[int, int]:
    """(Height, width) that the named backbone reads unless it is built for another; raises MethodError."""
    if name not in _BUILDERS:
        raise MethodError(f"unknown backbone {name!r}; expected one of {', '.join(_BUILDERS)}")
    return _DEFAULTS.get(name, _DEFAULT).input_size


def build_backbone(
    name: str,
    *,
    in_channels: int | None = None,
    embedding_size: int | None = None,
    width: float = 1.0,
    input_size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Backbone:
    """Build a backbone with fresh weights on the CPU, in training mode.

    `width` multiplies every channel count but the embedding's, in multiples of 8. `in_channels`,
    `embedding_size` and `input_size` (height, width) default to the named network's own: 3, 512 and 112x112;
    for `mobilefacenet-96` 3, 128 and 112x96; for LightCNN 3 (v2: 1), 256 and 128x128. Weights are drawn from
    `generator`, by default one seeded with 0. Raises MethodError.
    """
    input_size = default_input_size(name) if input_size is None else input_size
    default = _DEFAULTS.get(name, _DEFAULT)
    dimensions = Dimensions(
        default.in_channels if in_channels is None else in_channels,
        default.embedding_size if embedding_size is None else embedding_size,
        width,
        input_size,
    )
    _check("in_channels", dimensions.in_channels, 1)
    _check("embedding_size", dimensions.embedding_size, 1)
    _check("width", width, 1 / 64)
    for side in input_size:
        _check("input_size", side, 16)
    return initialised(empty_backbone(name, dimensions), generator)


def empty_backbone(name: str, dimensions: Dimensions) -> Backbone:
    """Build a backbone on the meta device: names and shapes without values, so nothing is drawn at random."""
    with torch.device("meta"):
        return _BUILDERS[name](dimensions)


def _check(argument: str, value: float, least: float) -> None:
    if not value >= least:
        raise MethodError(f"{argument} is {value}; expected at least {least:g}")
