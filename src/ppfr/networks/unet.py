"""U-Net: the generator of MinusFace."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppfr.networks.base import initialised, scaled
from ppfr.util.errors import ShapeError

_CHANNELS = (64, 128, 256, 512, 1024)
LEVELS = len(_CHANNELS)
REDUCTION = 2 ** (LEVELS - 1)
LAST = f"right_conv_{LEVELS}"


class ConvPair(nn.Module):
    """Two 3x3 convolutions, each with ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_ReLU = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv_ReLU(x)
        return features


class UNet(nn.Module):
    """U-Net of Ronneberger et al. 2015 as in MinusFace (CVPR 2024), with the state_dict names of TFace.

    Five levels of 64 to 1024 channels (times `width`) without normalisation; a level is joined with the
    upsampled one below it, skip first.
    """

    def __init__(self, in_channels: int = 192, out_channels: int = 192, *, width: float = 1.0) -> None:
        super().__init__()
        self.in_channels = in_channels
        channels = [scaled(count, width) for count in _CHANNELS]
        before = in_channels
        for level, count in enumerate(channels, start=1):
            self.add_module(f"left_conv_{level}", ConvPair(before, count))
            before = count
        self.pool = nn.MaxPool2d(2)
        for level, count in enumerate(reversed(channels[:-1]), start=1):
            deconvolution = nn.ConvTranspose2d(before, count, 3, stride=2, padding=1, output_padding=1)
            self.add_module(f"deconv_{level}", deconvolution)
            self.add_module(f"right_conv_{level}", ConvPair(2 * count, count))
            before = count
        self.add_module(LAST, nn.Conv2d(before, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in_channels, H, W) into (B, out_channels, H, W); H and W are multiples of 16.

        Raises ShapeError.
        """
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the features of all levels, the finest first; the last, at 1/16, is the latent."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % REDUCTION or x.shape[3] % REDUCTION:
            raise ShapeError(
                f"U-Net got input of shape {tuple(x.shape)}; expected (B, {self.in_channels}, H, W) "
                f"with H and W multiples of {REDUCTION}"
            )
        features = [self.get_submodule("left_conv_1")(x)]
        for level in range(2, LEVELS + 1):
            features.append(self.get_submodule(f"left_conv_{level}")(self.pool(features[-1])))
        return features

    @property
    def first_layer(self) -> nn.Conv2d:
        """The convolution that reads the input."""
        layer = self.get_submodule("left_conv_1.conv_ReLU.0")
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def last_layer(self) -> nn.Conv2d:
        """The 1x1 convolution that writes the output."""
        layer = self.get_submodule(LAST)
        assert isinstance(layer, nn.Conv2d)
        return layer

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Output (B, out_channels, H, W) from the features of `encode`."""
        output: Tensor = self.last_layer(self.decode_features(features))
        return output

    def decode_features(self, features: Sequence[Tensor]) -> Tensor:
        """Input of the last layer, (B, 64 * width, H, W), from the features of `encode`."""
        *skips, x = features
        for level, skip in enumerate(reversed(skips), start=1):
            x = self.get_submodule(f"deconv_{level}")(x)
            x = self.get_submodule(f"right_conv_{level}")(torch.cat([skip, x], dim=1))
        return x


def build_unet(
    *,
    in_channels: int = 192,
    out_channels: int = 192,
    width: float = 1.0,
    generator: torch.Generator | None = None,
) -> UNet:
    """Build a U-Net on the CPU with weights from `generator`, by default one seeded with 0."""
    with torch.device("meta"):
        network = UNet(in_channels, out_channels, width=width)
    return initialised(network, generator)
