"""Input preprocessing of recognisers: size, channel order, mean and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from ppfr.util.errors import ShapeError

ChannelOrder = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]

HALF: Triple = (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class Preprocessing:
    """Turn (B, 3, H, W) images, RGB in [-1, 1], into a recogniser's input: (pixel - mean) / std.

    `mean` and `std` are in units of 8-bit pixel values, always in the order R, G, B; `channel_order` is that of the
    network's input. `size` is (height, width): images are resized to the height (bilinear, antialiased), then
    the central columns are taken. `source` says where these settings come from. Raises ShapeError.
    """

    size: tuple[int, int] = (112, 112)
    channel_order: ChannelOrder = "rgb"
    mean: Triple = HALF
    std: Triple = HALF
    source: str = "default"

    def __post_init__(self) -> None:
        if self.channel_order not in get_args(ChannelOrder):
            raise ShapeError(f"channel_order is {self.channel_order!r}; expected 'rgb' or 'bgr'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ShapeError(f"mean is {self.mean} and std {self.std}; expected three values each, std > 0")
        if max(self.std) < 1 and max(self.mean) < 1 and max(self.mean) > 0:
            raise ShapeError(
                f"mean {self.mean} and std {self.std} look like shares of 1; expected 8-bit pixel values: "
                "multiply them by 255"
            )
        height, width = self.size
        if not 0 < width <= height:
            raise ShapeError(f"size is {self.size}; expected (height, width) with width at most height")

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, *size), differentiable in `images`."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; expected float (B, 3, H, W) in [-1, 1]"
            )
        images = self._fit(images)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pixels = (images * (127.5 / std)) + (127.5 - mean) / std
        return pixels.flip(1) if self.channel_order == "bgr" else pixels

    def _fit(self, images: Tensor) -> Tensor:
        height, width = self.size
        if images.shape[2] != height:
            columns = round(images.shape[3] * height / images.shape[2])
            images = F.interpolate(images, (height, columns), mode="bilinear", antialias=True)
        spare = images.shape[3] - width
        if spare < 0:
            raise ShapeError(
                f"images are {images.shape[3]} pixels wide at height {height}; the recogniser needs {width}"
            )
        return images[..., spare // 2 : spare // 2 + width]

    def __str__(self) -> str:
        mean, std = (
            " ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))
            for values in (self.mean, self.std)
        )
        height, width = self.size
        return f"{self.channel_order.upper()} {height}x{width}, (pixel - {mean}) / {std} ({self.source})"
