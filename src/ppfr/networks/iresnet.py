"""Improved residual networks: IR and IR-SE in the layout of TFace and AdaFace, and InsightFace's variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn

from ppfr.networks.base import STAGES, Backbone, BlockShape, Dimensions
from ppfr.networks.prelu import PReLU

STEM_CHANNELS = 64
BASIC_CHANNELS = (64, 128, 256, 512)
BOTTLENECK_CHANNELS = (256, 512, 1024, 2048)
SQUEEZE_RATIO = 16
DROPOUT = 0.4


@dataclass(frozen=True)
class IResNetPlan:
    """Architecture of an IResNet: units per stage, and the kind of its units.

    `insightface`: the first shortcut is a 1x1 convolution even where the channels stay, and the last batch
    norm is affine, as in InsightFace's arcface_torch; otherwise as in TFace and AdaFace.
    """

    units: tuple[int, int, int, int]
    bottleneck: bool = False
    squeeze: bool = False
    insightface: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the four stages at width 1."""
        return BOTTLENECK_CHANNELS if self.bottleneck else BASIC_CHANNELS


PLANS = {
    "ir18": IResNetPlan((2, 2, 2, 2)),
    "ir34": IResNetPlan((3, 4, 6, 3)),
    "ir50": IResNetPlan((3, 4, 14, 3)),
    "ir101": IResNetPlan((3, 13, 30, 3)),
    "ir152": IResNetPlan((3, 8, 36, 3), bottleneck=True),
    "ir-se18": IResNetPlan((2, 2, 2, 2), squeeze=True),
    "ir-se34": IResNetPlan((3, 4, 6, 3), squeeze=True),
    "ir-se50": IResNetPlan((3, 4, 14, 3), squeeze=True),
    "ir-se101": IResNetPlan((3, 13, 30, 3), squeeze=True),
    "ir-se152": IResNetPlan((3, 8, 36, 3), bottleneck=True, squeeze=True),
    "r18": IResNetPlan((2, 2, 2, 2), insightface=True),
    "r34": IResNetPlan((3, 4, 6, 3), insightface=True),
    "r50": IResNetPlan((3, 4, 14, 3), insightface=True),
    "r100": IResNetPlan((3, 13, 30, 3), insightface=True),
}


class SqueezeExcitation(nn.Module):
    """Channel gate of Hu et al. 2018, "Squeeze-and-Excitation Networks": (B, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // SQUEEZE_RATIO)
        self.fc1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.fc1(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return x * gate


class ResidualUnit(nn.Module):
    """One IR unit: batch norm before the first convolution, PReLU between, nothing after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, plan: IResNetPlan, *, project: bool) -> None:
        super().__init__()
        self.shortcut_layer = _shortcut(in_channels, channels, stride, project=project)
        layers = _bottleneck_layers if plan.bottleneck else _basic_layers
        self.res_layer = nn.Sequential(*layers(in_channels, channels, stride))
        if plan.squeeze:
            self.res_layer.add_module("se_block", SqueezeExcitation(channels))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return total


def _shortcut(in_channels: int, channels: int, stride: int, *, project: bool) -> nn.Module:
    if project or in_channels != channels:
        return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    # a window of one pixel: every second pixel, as the references' 1x1 max-pool, without its index tensor
    return nn.Identity() if stride == 1 else nn.AvgPool2d(1, stride)


def _basic_layers(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        PReLU(channels),
        nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


def _bottleneck_layers(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    inner = channels // 4
    return [
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        PReLU(inner),
        nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
        nn.BatchNorm2d(inner),
        PReLU(inner),
        nn.Conv2d(inner, channels, 1, stride, bias=False),
        nn.BatchNorm2d(channels),
    ]


class IResNet(Backbone):
    """IResNet of Deng et al. 2019, "ArcFace", with the state_dict names of TFace and AdaFace.

    The four stages end at 1/2, 1/4, 1/8 and 1/16 of the input's side: 64x56x56, 128x28x28, 256x14x14, 512x7x7
    for 112x112 (four times the channels for the bottleneck forms). A block is one residual unit.
    """

    def __init__(self, name: str, plan: IResNetPlan, dimensions: Dimensions) -> None:
        channels = [dimensions.scale(count) for count in plan.channels]
        super().__init__(
            name,
            dimensions,
            block_outputs=[
                BlockShape(channels[stage], 2 ** (stage + 1))
                for stage in range(STAGES)
                for _ in range(plan.units[stage])
            ],
            stage_ends=[end - 1 for end in accumulate(plan.units)],
        )
        stem = dimensions.scale(STEM_CHANNELS)
        self.input_layer = nn.Sequential(
            nn.Conv2d(self.in_channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), PReLU(stem)
        )
        last, height, columns = self.block_shapes()[-1]
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(DROPOUT),
            nn.Flatten(),
            nn.Linear(last * height * columns, self.embedding_size),
            nn.BatchNorm1d(self.embedding_size, affine=plan.insightface),
        )
        self.body = nn.Sequential(*_units(plan, stem, channels))

    @property
    def first_layer(self) -> nn.Conv2d:
        layer = self.input_layer[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.body)

    def stem(self, x: Tensor) -> Tensor:
        features: Tensor = self.input_layer(x)
        return features

    def output(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.output_layer(x)
        return embeddings


def _units(plan: IResNetPlan, stem: int, channels: Sequence[int]) -> list[nn.Module]:
    units: list[nn.Module] = []
    previous = stem
    for count, current in zip(plan.units, channels, strict=True):
        units.append(ResidualUnit(previous, current, 2, plan, project=plan.insightface))
        units.extend(ResidualUnit(current, current, 1, plan, project=False) for _ in range(count - 1))
        previous = current
    return units
