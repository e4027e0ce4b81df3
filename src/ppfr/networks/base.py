"""Base class of recognition backbones: a stem, blocks in four stages, and an output layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppfr.util.errors import ShapeError

AfterStage = Callable[[int, Tensor], Tensor]
Shape = tuple[int, int, int]

Network = TypeVar("Network", bound=nn.Module)

STAGES = 4


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a backbone: input channels, length of the embedding, width multiplier, and input (height, width)."""

    in_channels: int
    embedding_size: int
    width: float
    input_size: tuple[int, int]

    def scale(self, channels: int) -> int:
        """A channel count times the width, rounded to a positive multiple of 8."""
        return scaled(channels, self.width)


@dataclass(frozen=True)
class BlockShape:
    """Output of a block: its channels, and its stride relative to the network's input."""

    channels: int
    reduction: int


class FilterBankConv(nn.Module, ABC):
    """A first layer of several filter banks, one for each kind of input, among which the input itself decides.

    Warm starts fit each bank to the inputs of its kind.
    """

    banks: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @abstractmethod
    def bank(self, index: int) -> Tensor:
        """The filters (O,C,k,k) of one bank, a view of the weights."""

    @abstractmethod
    def rescaled(self, features: Tensor, banks: Tensor) -> Tensor:
        """Features (B,C,H,W) at the scale in which the banks (B,) given for them see them."""


class Backbone(nn.Module, ABC):
    """A network that turns (B, in_channels, H, W) into (B, embedding_size) embeddings, not normalised.

    `input_size` is (H, W). A backbone narrower than it is high, such as 112x96, also takes square input and
    uses its central columns (8..103 of 112). The blocks fall into four stages, each of one resolution.
    """

    def __init__(
        self,
        name: str,
        dimensions: Dimensions,
        *,
        block_outputs: Sequence[BlockShape],
        stage_ends: Sequence[int],
    ) -> None:
        super().__init__()
        self.name = name
        self.in_channels = dimensions.in_channels
        self.embedding_size = dimensions.embedding_size
        self.width = dimensions.width
        self.input_size = dimensions.input_size
        self._block_outputs = tuple(block_outputs)
        self._stage_of_block = {block: stage for stage, block in enumerate(stage_ends)}

    @property
    @abstractmethod
    def first_layer(self) -> nn.Conv2d | FilterBankConv:
        """The convolution that reads the input."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks between the stem and the output layer, in order."""

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """Features (B,C,H,W) before the first block."""

    @abstractmethod
    def output(self, x: Tensor) -> Tensor:
        """Turn the last block's features into embeddings (B, embedding_size)."""

    def forward(self, x: Tensor, after_stage: AfterStage | None = None) -> Tensor:
        """Embed `x`, (B, in_channels, H, W), as (B, embedding_size).

        `after_stage(stage, features)` is called after the last block of stages 0 to 3 with features shaped as
        in `stage_shapes`; what it returns takes the place of the features. Raises ShapeError.
        """
        x = self.stem(self._fit(x))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if after_stage is not None and index in self._stage_of_block:
                x = after_stage(self._stage_of_block[index], x)
        return self.output(x)

    def block_features(self, x: Tensor, indices: Collection[int]) -> list[Tensor]:
        """Return the outputs of the blocks in `indices`, by rising index, and run nothing after the last.

        `x` is (B, in_channels, H, W); the shapes are those of `block_shapes`. Raises ShapeError.
        """
        unknown = [index for index in indices if not 0 <= index < len(self._block_outputs)]
        if unknown or not indices:
            raise ShapeError(
                f"block indices {sorted(indices)} asked of {self.name}; expected one or more of "
                f"0..{len(self._block_outputs) - 1}"
            )
        x = self.stem(self._fit(x))
        features = []
        for index, block in enumerate(self.blocks[: max(indices) + 1]):
            x = block(x)
            if index in indices:
                features.append(x)
        return features

    def block_shapes(self) -> tuple[Shape, ...]:
        """Return (C, H, W) of every block's output for input of `input_size`."""
        height, width = self.input_size
        return tuple(
            (block.channels, -(-height // block.reduction), -(-width // block.reduction))
            for block in self._block_outputs
        )

    def stage_shapes(self) -> tuple[Shape, Shape, Shape, Shape]:
        """Return (C, H, W) of the features that `after_stage` gets, for stages 0 to 3."""
        shapes = self.block_shapes()
        first, second, third, fourth = (shapes[block] for block in self._stage_of_block)
        return first, second, third, fourth

    def crop(self, x: Tensor) -> Tensor:
        """Cut (B, any channels, H, W) to the columns that the network reads; ShapeError for other sizes."""
        height, width = self.input_size
        if x.ndim == 4 and x.shape[2] == height:
            if x.shape[3] == width:
                return x
            if width < height == x.shape[3]:
                left = (height - width) // 2
                return x[..., left : left + width]
        raise self._misfit(x)

    def _fit(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise self._misfit(x)
        return self.crop(x)

    def _misfit(self, x: Tensor) -> ShapeError:
        height, width = self.input_size
        square = f" or (B, {self.in_channels}, {height}, {height})" if width < height else ""
        return ShapeError(
            f"{self.name} got input of shape {tuple(x.shape)}; expected "
            f"(B, {self.in_channels}, {height}, {width}){square}"
        )


def scaled(channels: int, width: float) -> int:
    """Multiply a channel count by `width` and round it to a positive multiple of 8."""
    return max(8, round(channels * width / 8) * 8)


def initialised(network: Network, generator: torch.Generator | None) -> Network:
    """Give a network that was built on the meta device memory on the CPU and weights from `generator`.

    Building on the meta device keeps the layers' own initialisation, which reads the global random state,
    from drawing anything. None is a generator seeded with 0.
    """
    network.to_empty(device="cpu")
    reset_weights(network, generator if generator is not None else torch.Generator().manual_seed(0))
    return network


def reset_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw fresh weights: He normal by fan-out for convolutions and linear layers, identity for batch norms.

    He et al. 2015, "Delving Deep into Rectifiers"; PReLU slopes start at 0.25 as there. Every layer is reset,
    so the weights depend on the generator alone.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.PReLU):
            nn.init.constant_(layer.weight, 0.25)
