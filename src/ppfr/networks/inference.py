"""The same network, faster: batch norms folded into the layers before them, inputs known to be zero left out."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from ppfr.networks.base import Backbone
from ppfr.util.errors import MethodError

Network = TypeVar("Network", bound=nn.Module)


def folded(network: Network) -> Network:
    """Return a copy for inference: each batch norm folded into the convolution or linear layer before it.

    The copy is in evaluation mode, its weights lie channels-last, and it computes the same function up to
    float rounding; later changes of `network` do not reach it. A norm is taken to follow a layer when it is
    registered right behind it, which holds for the networks of this package.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for (_, layer), (name, norm) in pairwise(list(module.named_children())):
            if (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)) or (
                isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
            ):
                _fold(layer, norm)
                setattr(module, name, nn.Identity())
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def reading_channel(backbone: Backbone, channel: int) -> Backbone:
    """Return a copy of a backbone that reads `channel` alone, (B, 1, H, W), as if all others were zero.

    Raises MethodError for a channel that the backbone does not have, or a first layer of several filter banks.
    """
    if not isinstance(backbone.first_layer, nn.Conv2d) or not 0 <= channel < backbone.in_channels:
        raise MethodError(
            f"channel {channel} of {backbone.name} ({type(backbone.first_layer).__name__} of {backbone.in_channels} "
            "channels); expected a plain convolution and one of its channels, counted from 0"
        )
    backbone = copy.deepcopy(backbone)
    layer = backbone.first_layer
    assert isinstance(layer, nn.Conv2d)
    layer.weight = nn.Parameter(layer.weight.detach()[:, channel : channel + 1].clone())
    layer.in_channels = backbone.in_channels = 1
    return backbone


@torch.no_grad()
def _fold(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
    shift = shift * scale
    if norm.affine:
        shift = shift + norm.bias
    layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter(shift)
