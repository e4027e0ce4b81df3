"""LightCNN: convolutional networks with max-feature-map activations; the recogniser of PrivacyHFR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.networks.base import Backbone, BlockShape, Dimensions
from ppfr.util.errors import MethodError

REDUCTION = 16
_CHAIN_UNITS = (1, 2, 3, 4)
_CHAIN_CHANNELS = (48, 96, 192, 128)
_STAGE_ENDS = (0, 3, 6, 8)


@dataclass(frozen=True)
class LightCNNPlan:
    """Variants of the 29-layer networks: the first kernel, and the layers between the stages."""

    first_kernel: int
    grouped: bool

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks between stem and output: chains of residual units, the layer after each, and pools."""
        between = [f"group{n}" if self.grouped else f"conv{n + 1}" for n in range(1, 5)]
        return [
            *("block1", between[0], "pool"),
            *("block2", between[1], "pool"),
            *("block3", between[2]),
            *("block4", between[3], "pool"),
        ]


PLANS = {
    "lightcnn-29v2": LightCNNPlan(first_kernel=5, grouped=True),
    "lightcnn-29v4": LightCNNPlan(first_kernel=3, grouped=False),
}


class MaxFeatureMap(nn.Module):
    """Convolution to twice the channels, then the larger of both halves (Wu et al. 2018, "A Light CNN")."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(in_channels, 2 * channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.filter(x).chunk(2, dim=1)
        return torch.maximum(first, second)


class ResidualUnit(nn.Module):
    """Two max-feature-map convolutions and the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = MaxFeatureMap(channels, channels, 3)
        self.conv2 = MaxFeatureMap(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(self.conv1(x))
        return change + x


class Group(nn.Module):
    """A 1x1 and a 3x3 max-feature-map convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_a = MaxFeatureMap(in_channels, in_channels, 1)
        self.conv = MaxFeatureMap(in_channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(self.conv_a(x))
        return features


class Pool(nn.Module):
    """The sum of maximum and mean of each 2x2 window."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)


class LightCNN(Backbone):
    """LightCNN-29 v2 and v4 of Wu et al. 2018, "A Light CNN", with the names of the authors' checkpoints.

    The output is the 256-d feature; the classifier behind it, `fc2` in the checkpoints, is a softmax head
    here. A stage is a chain of residual units: 48x64x64, 96x32x32, 192x16x16, 128x16x16 for 128x128. Raises
    MethodError for an input whose sides are no multiples of 16.
    """

    def __init__(self, name: str, plan: LightCNNPlan, dimensions: Dimensions) -> None:
        if any(side % REDUCTION for side in dimensions.input_size):
            raise MethodError(f"input_size is {dimensions.input_size}; {name} needs multiples of {REDUCTION}")
        chains = [dimensions.scale(count) for count in _CHAIN_CHANNELS]
        after = [*chains[1:], chains[-1]]
        super().__init__(
            name,
            dimensions,
            block_outputs=[
                BlockShape(chains[0], 2),
                *(BlockShape(after[0], reduction) for reduction in (2, 4, 4)),
                *(BlockShape(after[1], reduction) for reduction in (4, 8, 8)),
                *(BlockShape(after[2], reduction) for reduction in (8, 8, 8, 16)),
            ],
            stage_ends=_STAGE_ENDS,
        )
        self.conv1 = MaxFeatureMap(self.in_channels, chains[0], plan.first_kernel)
        self.pool = Pool()
        for index, (units, channels, following) in enumerate(zip(_CHAIN_UNITS, chains, after, strict=True)):
            chain = nn.Sequential(*(ResidualUnit(channels) for _ in range(units)))
            self.add_module(f"block{index + 1}", chain)
            if plan.grouped:
                self.add_module(f"group{index + 1}", Group(channels, following))
            else:
                self.add_module(f"conv{index + 2}", MaxFeatureMap(channels, following, 3))
        self._block_names = plan.block_names
        last, rows, columns = self.block_shapes()[-1]
        self.fc = nn.Linear(last * rows * columns, self.embedding_size)

    @property
    def first_layer(self) -> nn.Conv2d:
        return self.conv1.filter

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.get_submodule(name) for name in self._block_names]

    def stem(self, x: Tensor) -> Tensor:
        features: Tensor = self.pool(self.conv1(x))
        return features

    def output(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.fc(x.flatten(1))
        return embeddings
