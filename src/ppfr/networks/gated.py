"""A first layer for payloads of several kinds: one filter bank a kind, chosen from the payload itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.util.errors import ShapeError


class GatedConv2d(nn.Module):
    """Convolution whose filters are mixed per image from `experts` filter banks (CondConv, Yang et al. 2019).

    The gate reads only the logarithms of the payload's channel energies: channels of different frequencies differ by
    orders of magnitude, so energies tell the kind of payload at sight. Each expert carries its own input scale, so
    that its weights see channels of unit variance whatever their frequency. Input (B,C,H,W), output (B,O,H',W').
    """

    channel_scale: Tensor
    gate_weight: Tensor
    gate_bias: Tensor

    def __init__(
        self,
        experts: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (kernel_size, kernel_size)
        self.stride = (stride, stride)
        self.padding = (kernel_size // 2, kernel_size // 2)
        # four axes, not five, so that the module converts to channels-last like its neighbours
        self.weight = nn.Parameter(torch.empty(experts * out_channels, in_channels, kernel_size, kernel_size))
        deviation = (2.0 / (out_channels * kernel_size**2)) ** 0.5
        nn.init.normal_(self.weight, std=deviation, generator=generator)
        self.register_buffer("channel_scale", torch.ones(experts, in_channels))
        # the gate is fitted in closed form, not trained: `fit_gate`
        self.register_buffer("gate_weight", torch.zeros(in_channels, experts))
        self.register_buffer("gate_bias", torch.zeros(experts))

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        banks = self.weight.view(self.experts, self.out_channels, *self.weight.shape[1:])
        banks = banks * self.channel_scale[:, None, :, None, None]
        mixed = torch.einsum("be,eochw->bochw", self.gate(features), banks)
        result = F.conv2d(
            features.reshape(1, batch * channels, height, width),
            mixed.flatten(0, 1).to(features.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=batch,
        )
        return result.reshape(batch, self.out_channels, *result.shape[-2:])

    def bank(self, expert: int) -> Tensor:
        """One expert's filters (O,C,k,k), a view of the weights."""
        return self.weight[expert * self.out_channels : (expert + 1) * self.out_channels]

    def gate(self, features: Tensor) -> Tensor:
        """Weights of the experts for each image, (B, experts), each row summing to 1."""
        with torch.autocast(features.device.type, enabled=False):
            logits = _log_energy(features.float()) @ self.gate_weight + self.gate_bias
            return logits.softmax(dim=1)

    @torch.no_grad()
    def fit_gate(self, features: Tensor, expert: Tensor) -> float:
        """Fit the gate by linear discriminant analysis and the input scales; returns the share of rows told right.

        `features` (N,C,H,W) is a sample in which every expert occurs, `expert` (N,) its true kinds. Raises ShapeError
        when a kind is missing.
        """
        counts = torch.bincount(expert, minlength=self.experts)
        if int(counts.min()) < 2:
            raise ShapeError(
                f"expert kinds occur {counts.tolist()} times; every one needs at least 2 rows to be fitted"
            )
        energy = _log_energy(features.float()).double()
        means = torch.stack([energy[expert == kind].mean(0) for kind in range(self.experts)])
        within = energy - means[expert]
        covariance = within.T @ within / len(within)
        covariance += 1e-2 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        weight = torch.linalg.solve(covariance, means.T)
        bias = -0.5 * (means * weight.T).sum(1)
        self.gate_weight.copy_(weight)
        self.gate_bias.copy_(bias)
        self.channel_scale.copy_((-means).exp())
        return float((self.gate(features).argmax(1) == expert).float().mean())


def _log_energy(features: Tensor) -> Tensor:
    """Logarithm of each channel's root mean square, (B,C)."""
    return features.flatten(2).square().mean(2).clamp_min(1e-16).log() * 0.5


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` sits below `root`; raises ShapeError when it sits nowhere."""
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
    raise ShapeError(f"{type(old).__name__} is not part of {type(root).__name__}")
