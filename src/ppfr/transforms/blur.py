"""Obfuscators: blur, pixelation and other image filters that hide a face from viewers.

All take RGB images (B, 3, H, W) in [-1, 1] and return images of that shape, and all are differentiable in the images.
Strengths are single numbers or tensors (B,) with one for each image. None of them is a protection by itself: blurred
faces can be recognised and restored (McPherson et al. 2016, "Defeating Image Obfuscation with Deep Learning").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.distributed.global_batch import rand, randint
from ppfr.util.errors import ShapeError

OBFUSCATORS = ("gaussian", "median", "pixelate", "hybrid", "black-box", "downscale")
GAUSSIAN_KERNEL = 31
# a bar over the eyes of a face aligned to the ArcFace template: top, left, bottom, right as fractions of the image
EYES = (0.36, 0.16, 0.57, 0.84)
# the sources of a hybrid image's tiles, in the order in which `tile_sources` hands them out
_MEDIAN, _GAUSSIAN, _PIXELATED = 0, 1, 2

Strength = float | Tensor
_MakeMatrix = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class BlurRange:
    """Ranges from which each image's strengths are drawn uniformly; the defaults are PRO-Face C's for evaluation.

    `sigma` of the Gaussian lies between two values, in pixels; `kernels` are sides of the median's window, `blocks`
    sides of a pixelated block, both in pixels; a hybrid image has `sides` x `sides` tiles.
    """

    sigma: tuple[float, float] = (5.0, 5.0)
    kernels: tuple[int, ...] = (13,)
    blocks: tuple[int, ...] = (7,)
    sides: tuple[int, ...] = (4,)

    def draw_sigma(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """One sigma an image, (count,)."""
        low, high = self.sigma
        return low + (high - low) * rand((count,), generator, device)

    @staticmethod
    def draw(choices: tuple[int, ...], count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """One of `choices` an image, (count,)."""
        chosen = randint(len(choices), (count,), generator, device)
        return torch.tensor(choices, device=device)[chosen]


EVALUATION = BlurRange()
# the ranges in which PRO-Face C (IEEE TIFS 2024) draws while training
TRAINING = BlurRange((2.0, 8.0), tuple(range(7, 20, 2)), tuple(range(3, 12)), (2, 3, 4, 5))


def obfuscate(images: Tensor, how: str, generator: torch.Generator, strength: BlurRange = EVALUATION) -> Tensor:
    """Obfuscate each image by the obfuscator `how`, one of `OBFUSCATORS`, with strengths drawn from `strength`.

    Raises ShapeError for another name, and for images that are no floats (B, 3, H, W).
    """
    _check(images)
    count, device = len(images), images.device
    if how in OBFUSCATORS and not count:
        return images
    if how == "gaussian":
        return gaussian_blur(images, strength.draw_sigma(count, generator, device))
    if how == "median":
        return median_blur(images, BlurRange.draw(strength.kernels, count, generator, device))
    if how == "pixelate":
        return pixelate(images, BlurRange.draw(strength.blocks, count, generator, device))
    if how == "hybrid":
        return hybrid_blur(images, generator, strength)
    if how == "black-box":
        return black_box(images)
    if how == "downscale":
        return downscale(images, BlurRange.draw(strength.blocks, count, generator, device))
    raise ShapeError(f"no obfuscator {how!r}; expected one of {', '.join(OBFUSCATORS)}")


# --- one obfuscator each -------------------------------------------------------------------------------------------


def gaussian_blur(images: Tensor, sigma: Strength = 5.0, kernel: int = GAUSSIAN_KERNEL) -> Tensor:
    """Convolve with a Gaussian of standard deviation `sigma` pixels, cut to `kernel` pixels, borders reflected.

    Raises ShapeError for an even kernel, one that reaches beyond twice the image, and sigma not above 0.
    """
    _check(images)
    reach = kernel // 2
    if kernel < 1 or kernel % 2 == 0 or reach >= min(images.shape[2:]):
        raise ShapeError(f"kernel is {kernel}; expected odd, with half of it below {min(images.shape[2:])} pixels")
    sigmas = _strengths(sigma, images, "sigma").to(images.dtype)
    if not bool((sigmas > 0).all()):
        raise ShapeError(f"sigma is {float(sigmas.min()):g}; expected above 0 pixels")
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (offsets / sigmas[:, None]).square(), dim=1)
    batch, channels, height, width = images.shape
    # each plane of each image is a group with a filter of its own; mixed precision would leave half the grey levels
    filters = weights.repeat_interleave(channels, 0)
    with torch.autocast(images.device.type, enabled=False):
        planes = F.pad(images, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
        planes = F.conv2d(planes, filters[:, None, None], groups=batch * channels)
        planes = F.conv2d(planes, filters[:, None, :, None], groups=batch * channels)
    return planes.view(batch, channels, height, width)


def pixelate(images: Tensor, block: Strength = 7, *, pick: bool = False) -> Tensor:
    """Show blocks of about `block` pixels a side in one colour each, their mean.

    There are floor(H / block) rows and floor(W / block) columns of blocks, as equal as whole pixels allow. With `pick`
    a block shows what bilinear interpolation finds at its centre: the public code of PRO-Face C, which means to average
    and at block 7 picks one pixel. Raises ShapeError for a block below 1 or above the image's sides.
    """
    return _separable(images, block, "block", _picking if pick else _averaging)


def downscale(images: Tensor, factor: Strength = 7) -> Tensor:
    """Average blocks of about `factor` pixels a side, then enlarge bilinearly to the old size.

    Raises ShapeError for a factor below 1 or above the image's sides.
    """
    return _separable(images, factor, "factor", _enlarging)


def median_blur(images: Tensor, kernel: Strength = 13) -> Tensor:
    """Replace each value by the median of the `kernel` x `kernel` window around it; outside lies mid-grey, 0.

    The gradient goes to the pixel that was chosen. Images of 8-bit values that need no gradient take OpenCV's median,
    tens of times faster and the same. Raises ShapeError for a kernel that is not odd.
    """
    _check(images)
    kernels = _strengths(kernel, images, "kernel")
    if not bool(((kernels > 0) & (kernels % 2 == 1)).all()):
        raise ShapeError(f"kernel is {kernels.tolist()}; expected odd numbers of pixels")
    if not len(images):
        return images
    levels = None if images.requires_grad and torch.is_grad_enabled() else _levels(images)
    if levels is not None:
        found = [_median_of_levels(one, int(side)) for one, side in zip(levels, kernels.tolist(), strict=True)]
        return (torch.stack(found).to(images) - 127.5) / 127.5
    return torch.stack([_median(one, int(side)) for one, side in zip(images, kernels.tolist(), strict=True)])


def black_box(images: Tensor, box: tuple[float, float, float, float] = EYES) -> Tensor:
    """Blacken a rectangle: top, left, bottom, right as fractions of height and width; by default the eyes.

    Raises ShapeError for an empty box or one outside the image.
    """
    _check(images)
    top, left, bottom, right = box
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ShapeError(f"box is {box}; expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1")
    height, width = images.shape[2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return images.masked_fill(mask, -1.0)


# --- hybrid --------------------------------------------------------------------------------------------------------


def hybrid_blur(images: Tensor, generator: torch.Generator, strength: BlurRange = EVALUATION) -> Tensor:
    """Patch each image together from its median, Gaussian and pixelated versions (PRO-Face C, IEEE TIFS 2024).

    n x n tiles, n from `strength.sides`: a random third of them (rounded down) comes from the median, a third from the
    Gaussian, the rest from the pixelated image. Tile borders are the whole pixels nearest to equal tiles; the public
    code resizes the image to a multiple of n and back instead.
    """
    _check(images)
    count, device = len(images), images.device
    sigma = strength.draw_sigma(count, generator, device)
    kernels = BlurRange.draw(strength.kernels, count, generator, device)
    blocks = BlurRange.draw(strength.blocks, count, generator, device)
    sides = BlurRange.draw(strength.sides, count, generator, device).tolist()
    noise = rand((count, max(strength.sides) ** 2), generator, device)
    orders = [noise[image, : side * side].argsort() for image, side in enumerate(sides)]
    height, width = images.shape[2:]
    sources = torch.stack([tile_sources(order, (height, width)) for order in orders])
    return combine(median_blur(images, kernels), gaussian_blur(images, sigma), pixelate(images, blocks), sources)


def tile_sources(order: Tensor, size: tuple[int, int]) -> Tensor:
    """Which version each pixel shows, (H,W): 0 median, 1 Gaussian, 2 pixelated, from an order (n*n,) of the tiles.

    Tiles are numbered row by row; the first third of `order` are median tiles, the second Gaussian, the rest pixelated.
    """
    tiles = len(order)
    side, third = round(tiles**0.5), tiles // 3
    if side * side != tiles or not tiles:
        raise ShapeError(f"{tiles} tiles are ordered; expected n * n")
    sources = torch.full((tiles,), _PIXELATED, device=order.device)
    sources[order[:third]] = _MEDIAN
    sources[order[third : 2 * third]] = _GAUSSIAN
    rows, columns = (torch.arange(length, device=order.device) * side // length for length in size)
    return sources[rows[:, None] * side + columns]


def combine(median: Tensor, gaussian: Tensor, pixelated: Tensor, sources: Tensor) -> Tensor:
    """Take each pixel from the version (B,3,H,W) that `sources` (B,H,W), see `tile_sources`, names."""
    chosen = sources[:, None]
    return torch.where(chosen == _MEDIAN, median, torch.where(chosen == _GAUSSIAN, gaussian, pixelated))


# --- separable maps ------------------------------------------------------------------------------------------------


def _averaging(length: int, block: int) -> Tensor:
    """Matrix (length, length) that replaces values by the mean of their block."""
    cells = torch.arange(length) * (length // block) // length
    same = (cells[:, None] == cells).double()
    return same / same.sum(1, keepdim=True)


def _picking(length: int, block: int) -> Tensor:
    cells = length // block
    small = F.interpolate(torch.eye(length).double()[None], size=cells, mode="linear", align_corners=False)
    return F.interpolate(small, size=length, mode="nearest")[0].T


def _enlarging(length: int, factor: int) -> Tensor:
    cells = length // factor
    starts = -(-torch.arange(cells) * length // cells)
    # one row of means for each block, whose first pixel is at `starts`
    means = _averaging(length, factor)[starts]
    return F.interpolate(means.T[None], size=length, mode="linear", align_corners=False)[0].T


@lru_cache(maxsize=128)
def _matrix(make: _MakeMatrix, length: int, block: int) -> Tensor:
    return make(length, block).float()


def _separable(images: Tensor, strength: Strength, name: str, make: _MakeMatrix) -> Tensor:
    """Apply a linear map of lines, made by `make(length, strength)`, to rows and to columns."""
    _check(images)
    blocks = [int(block) for block in _strengths(strength, images, name).tolist()]
    height, width = images.shape[2:]
    if not all(1 <= block <= min(height, width) for block in blocks):
        raise ShapeError(f"{name} is {blocks}; expected 1..{min(height, width)} pixels")
    down, across = (
        torch.stack([_matrix(make, side, block) for block in blocks]).to(images) for side in (height, width)
    )
    with torch.autocast(images.device.type, enabled=False):
        mapped: Tensor = down[:, None] @ images @ across[:, None].transpose(2, 3)
        return mapped


# --- medians -------------------------------------------------------------------------------------------------------


def _levels(images: Tensor) -> Tensor | None:
    """Images in [-1,1] as 8-bit values, uint8; None if a value is not on the 8-bit grid."""
    levels = images * 127.5 + 127.5
    whole = levels.round()
    fits = float((levels - whole).abs().amax()) < 1e-3 and float(whole.amin()) >= 0 and float(whole.amax()) <= 255
    return whole.byte() if fits else None


def _median_of_levels(image: Tensor, kernel: int) -> Tensor:
    """Median (3,H,W), float, in 8-bit levels of one uint8 image; outside lies 127.5."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    reach = kernel // 2
    # 127.5 is no level. A median among the levels is the same whichever neighbour stands in for it; else it is 127.5,
    # and the two stand-ins differ
    below, above = (
        cv2.medianBlur(np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), constant_values=outside), kernel)
        for outside in (127, 128)
    )
    height, width = pixels.shape[:2]
    inside = np.s_[reach : reach + height, reach : reach + width]
    both = below[inside].astype(np.float32) + above[inside]
    return torch.from_numpy(both / 2).permute(2, 0, 1)


def _median(image: Tensor, kernel: int) -> Tensor:
    """Median (3,H,W) of one image of any values, differentiable."""
    reach = kernel // 2
    padded = F.pad(image, (reach,) * 4)
    channels, height, width = image.shape
    values: npt.NDArray[np.float32] = padded.detach().cpu().float().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(values, (kernel, kernel), (1, 2))
    flat = windows.reshape(channels * height * width, kernel * kernel)
    middle = kernel * kernel // 2
    chosen = torch.from_numpy(np.argpartition(flat, middle, axis=1)[:, middle]).to(image.device)
    chosen = chosen.view(channels, height, width)
    rows = torch.arange(height, device=image.device)[:, None] + chosen // kernel
    columns = torch.arange(width, device=image.device) + chosen % kernel
    places = rows * padded.shape[2] + columns
    return padded.flatten(1).gather(1, places.flatten(1)).view(image.shape)


# --- input ---------------------------------------------------------------------------------------------------------


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ShapeError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected floats (B, 3, H, W) in [-1, 1]"
        )


def _strengths(strength: Strength, images: Tensor, name: str) -> Tensor:
    """One strength for each image, (B,)."""
    values = torch.as_tensor(strength, device=images.device)
    if values.ndim == 0:
        values = values.expand(len(images))
    if tuple(values.shape) != (len(images),):
        raise ShapeError(f"{name} has shape {tuple(values.shape)}; expected one number, or one for each image")
    return values
