"""Pieces that several methods' servers share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppfr.networks import Backbone


class InputScale(nn.Module):
    """Divides each channel by its root mean square on a training sample: DCT channels differ by factors of 1e5."""

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale[:, None, None]

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Set the scale from a sample (N,C,H,W)."""
        count = features.numel() / features.shape[1]
        energy = torch.linalg.vector_norm(features.float(), dim=(0, 2, 3)) / count**0.5
        self.scale.copy_(1.0 / energy.clamp_min(1e-8))


class ChannelServer(nn.Module):
    """The plainest server: one payload tensor, scaled per channel, through a recogniser."""

    def __init__(self, backbone: Backbone, tensor: str = "channels", *, scaled: bool = True) -> None:
        super().__init__()
        self.tensor = tensor
        self.scale = InputScale(backbone.in_channels) if scaled else None
        self.backbone = backbone

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the backbone's first layer sees."""
        features = tensors[self.tensor]
        return features if self.scale is None else self.scale(features)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        embedding: Tensor = self.backbone(self.trunk_input(tensors))
        return embedding
