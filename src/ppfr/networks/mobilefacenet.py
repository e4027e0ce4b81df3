"""MobileFaceNet: a small backbone for clients and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ppfr.networks.base import Backbone, BlockShape, Dimensions
from ppfr.networks.prelu import PReLU


@dataclass(frozen=True)
class MobileFaceNetPlan:
    """Variants of the published MobileFaceNets, which differ only in the output layer."""

    output_bias: bool = False
    output_affine: bool = False


PLANS = {
    "mobilefacenet": MobileFaceNetPlan(),
    "mobilefacenet-96": MobileFaceNetPlan(output_affine=True),
    "mobilefacenet-client": MobileFaceNetPlan(output_bias=True, output_affine=True),
}

# Blocks 0..7 of the client networks of DuetFace and PRO-Face C, by their names in TFace's MobileFaceNet.
BLOCKS = ("conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5", "conv_6_sep")
CLIENT_BLOCKS = (1, 3, 5, 7)
_BLOCK_CHANNELS = (64, 64, 64, 128, 128, 128, 128, 512)
_BLOCK_REDUCTIONS = (2, 4, 4, 8, 8, 16, 16, 16)
_STAGE_ENDS = (0, 2, 4, 6)


class ConvBlock(nn.Module):
    """Convolution, batch norm and, unless `linear`, PReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        *,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        if not linear:
            self.prelu = PReLU(channels)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else self.prelu(x)


class InvertedBottleneck(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project linearly (Sandler et al. 2018, "MobileNetV2")."""

    def __init__(self, in_channels: int, inner: int, channels: int, stride: int, *, residual: bool = False) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels, inner)
        self.conv_dw = ConvBlock(inner, inner, 3, stride, 1, groups=inner)
        self.project = ConvBlock(inner, channels, linear=True)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.project(self.conv_dw(self.conv(x)))
        return x + change if self.residual else change


class ResidualChain(nn.Module):
    """Several residual inverted bottlenecks of one size."""

    def __init__(self, channels: int, inner: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(InvertedBottleneck(channels, inner, channels, 1, residual=True) for _ in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model(x)
        return features


class GlobalDepthwise(nn.Module):
    """Weigh all positions of each channel, then map linearly to the embedding and normalise."""

    def __init__(self, channels: int, kernel: tuple[int, int], embedding_size: int, plan: MobileFaceNetPlan) -> None:
        super().__init__()
        self.conv_6_dw = ConvBlock(channels, channels, kernel, groups=channels, linear=True)
        self.linear = nn.Linear(channels, embedding_size, bias=plan.output_bias)
        self.bn = nn.BatchNorm1d(embedding_size, affine=plan.output_affine)

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.bn(self.linear(self.conv_6_dw(x).flatten(1)))
        return embeddings


class MobileFaceNet(Backbone):
    """MobileFaceNet of Chen et al. 2018, with the state_dict names of TFace.

    Its eight blocks are those of the DuetFace and PRO-Face C clients, which read blocks 1, 3, 5, 7
    (`CLIENT_BLOCKS`): 64x28x28, 128x14x14, 128x7x7, 512x7x7. The four stages end with the last block of each
    resolution, 0, 2, 4, 6: 64x56x56, 64x28x28, 128x14x14, 128x7x7.
    """

    def __init__(self, name: str, plan: MobileFaceNetPlan, dimensions: Dimensions) -> None:
        super().__init__(
            name,
            dimensions,
            block_outputs=[
                BlockShape(dimensions.scale(channels), reduction)
                for channels, reduction in zip(_BLOCK_CHANNELS, _BLOCK_REDUCTIONS, strict=True)
            ],
            stage_ends=_STAGE_ENDS,
        )
        c64, c128, c256, c512 = (dimensions.scale(channels) for channels in (64, 128, 256, 512))
        _, *kernel = self.block_shapes()[-1]
        self.conv1 = ConvBlock(self.in_channels, c64, 3, 2, 1)
        self.conv2_dw = ConvBlock(c64, c64, 3, 1, 1, groups=c64)
        self.conv_23 = InvertedBottleneck(c64, c128, c64, 2)
        self.conv_3 = ResidualChain(c64, c128, 4)
        self.conv_34 = InvertedBottleneck(c64, c256, c128, 2)
        self.conv_4 = ResidualChain(c128, c256, 6)
        self.conv_45 = InvertedBottleneck(c128, c512, c128, 2)
        self.conv_5 = ResidualChain(c128, c256, 2)
        self.conv_6_sep = ConvBlock(c128, c512)
        self.output_layer = GlobalDepthwise(c512, (kernel[0], kernel[1]), self.embedding_size, plan)

    @property
    def first_layer(self) -> nn.Conv2d:
        return self.conv1.conv

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.get_submodule(name) for name in BLOCKS]

    def stem(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv1(x)
        return features

    def output(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.output_layer(x)
        return embeddings
