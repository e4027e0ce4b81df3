"""The block-DCT front end of DuetFace, PartialFace, MinusFace, DCTDP, PPFR-FD, PrivacyHFR, and its inverse.

What it computes: enlarge the image 8x (bilinear, corners aligned), convert it to YCbCr, subtract 128 and take
the orthonormal 8x8 DCT-II of each block. Each pixel becomes one block and each of the 64 frequencies one
channel. Frequency f = 8 * v + u is the vertical frequency v with the horizontal frequency u; f = 0 is the
mean of the block. (Mi et al., DuetFace, ACM MM 2022, section 3; the public TFace code.)

How it is computed: without enlarging anything. The chain is linear and separable: channel (v, u) of a plane X
is M_v X M_u^T. M_u is tridiagonal, as block i of an enlarged line lies between the neighbours of pixel i.
With ahead[i] = x[i + 1] - x[i] and behind[i] = x[i] - x[i - 1], frequency u of a line x is

    (M_u x)[i] = mean_u * x[i] + ahead_u[i] * ahead[i] + behind_u[i] * behind[i]

mean_u is zero unless u = 0. The symmetry of the cosines makes behind_u = -ahead_u for the other even u, which
therefore need a single product, with ahead - behind. So a channel takes one or two passes over memory, and as
differences come first, the tiny high frequencies keep their digits. There are no matrix products here, which
autocast, TF32 and other reduced-precision modes would degrade.

The inverse shrinks by 8, corners aligned. Both taps of an output pixel then lie in that pixel's own block, so
the pixel is a sum of the 64 channels at one position, weighted by tap_v[row] * tap_u[column].
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ppfr.transforms.color import join_luma_chroma, split_luma_chroma
from ppfr.util.errors import ShapeError

BLOCK = 8
FREQUENCIES = BLOCK * BLOCK
_MEAN = math.sqrt(BLOCK)  # mean_u of u = 0
_MIDDLE = 128.0  # what JPEG subtracts so that samples lie around zero

# Planes are worked on in groups, so that the temporaries stay in the processor's cache (on a GPU: so that
# they stay small beside the output). This is the size of one temporary.
_GROUP_BYTES_CPU = 768 << 10
_GROUP_BYTES_OTHER = 64 << 20

_Linear: TypeAlias = Callable[[Tensor], Tensor]


def block_dct(images: Tensor, frequencies: Iterable[int] | None = None, *, raw_range: bool = False) -> Tensor:
    """Block-DCT coefficients (B, 3, F, H, W), colours Y, Cb, Cr, of RGB images (B, 3, H, W) in [-1, 1].

    `frequencies` are F distinct numbers 8 * v + u in 0..63, in the order wanted; None means all 64,
    ascending. Networks take the colour-major layout (B, 3 * F, H, W): that is `.flatten(1, 2)` of the result,
    which copies nothing. H and W are at least 8. Frequency 0 lies in [-1024, 1024], high ones are near zero.

    `raw_range` multiplies [-1, 1] by 255 without moving it to [0, 1] first, as the public PrivacyHFR code
    does; coefficients other than frequency 0 are then twice as large.

    float32 and float64 keep their dtype. float16 and bfloat16 images are transformed in float32 and the
    result is float32, because half precision would round the high frequencies away. Differentiable any number
    of times. The values are those of the public TFace code up to rounding; it fixes the size at 112, this
    does not. Raises ShapeError.
    """
    chosen = _checked_frequencies(frequencies)
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < BLOCK:
        raise ShapeError(f"images have shape {shape}; expected (B, 3, H, W), H and W at least {BLOCK}")
    scale, middle = (255.0, 0.0) if raw_range else (127.5, 127.5)
    planes = torch.stack(split_luma_chroma(_at_least_float32("images", images)), dim=1).mul_(scale)
    planes[:, 0].add_(middle - _MIDDLE)
    if torch.compiler.is_exporting():
        channels = _plain_analyse(planes.flatten(0, 1), chosen)
    else:
        plan = _plan(chosen, planes)
        channels = _linear(planes.flatten(0, 1), plan.analyse, plan.analyse_adjoint)
    return channels.view(shape[0], 3, len(chosen), *shape[2:])


def inverse_block_dct(coefficients: Tensor, frequencies: Iterable[int] | None = None, clamp: bool = True) -> Tensor:
    """RGB images (B, 3, H, W) in [0, 1] of block-DCT coefficients (B, 3, F, H, W) as `block_dct` makes them.

    `frequencies` says which of 0..63 the F channels are, in their order (None: all 64); absent ones count as
    zero. `clamp=False` keeps values outside [0, 1]. Dtypes, derivatives and errors are those of `block_dct`.

    It is as inexact an inverse as the reference's: shrinking does not meet the grid that enlarging made. On
    photographs of faces the round trip is off by up to about 0.05, at sharp edges.
    """
    chosen = _checked_frequencies(frequencies)
    shape = tuple(coefficients.shape)
    if len(shape) != 5 or shape[1:3] != (3, len(chosen)) or min(shape[3:]) < BLOCK:
        raise ShapeError(
            f"coefficients have shape {shape}; expected (B, 3, {len(chosen)}, H, W) for "
            f"{len(chosen)} frequencies, H and W at least {BLOCK}"
        )
    channels = _at_least_float32("coefficients", coefficients).flatten(0, 1)
    if torch.compiler.is_exporting():
        planes = _plain_synthesise(channels, chosen)
    else:
        plan = _plan(chosen, channels)
        planes = _linear(channels, plan.synthesise, plan.synthesise_adjoint)
    luma, blue_chroma, red_chroma = planes.view(shape[0], 3, *shape[3:]).unbind(1)
    images = join_luma_chroma(luma, blue_chroma, red_chroma).add_(_MIDDLE).div_(255)
    return images.clamp_(0, 1) if clamp else images


def frequency_matrix(
    size: int,
    frequency: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The tridiagonal matrix M_u (size, size) from a line of pixels to frequency u, 0..7, of their blocks.

    Channel 8 * v + u that `block_dct` makes of a plane X is M_v X M_u^T. Raises ShapeError.
    """
    if size < BLOCK:
        raise ShapeError(f"size is {size}; expected at least {BLOCK} pixels")
    if not 0 <= frequency < BLOCK:
        raise ShapeError(f"frequency is {frequency}; expected the frequency along one axis, 0..{BLOCK - 1}")
    ahead, behind = (weights[frequency] for weights in _step_weights(size))
    mean = _MEAN if frequency == 0 else 0.0
    matrix = np.diag(mean - ahead + behind) + np.diag(ahead[:-1], 1) - np.diag(behind[1:], -1)
    return torch.from_numpy(matrix).to(device=device, dtype=dtype)


def round_trip_matrix(
    size: int,
    frequency: int | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The tridiagonal matrix K_u (size, size) from a line of pixels to its reconstruction from frequency u, 0..7.

    `inverse_block_dct` after `block_dct` turns a plane X into the sum of K_v X K_u^T over the frequencies 8 * v + u
    that it is given. None is the sum of all K_u: what both leave of a line between them. Raises ShapeError.
    """
    if frequency is None:
        return torch.stack([round_trip_matrix(size, u, device=device, dtype=dtype) for u in range(BLOCK)]).sum(0)
    analysis = frequency_matrix(size, frequency, device=device, dtype=dtype)
    return torch.from_numpy(_taps(size)[frequency]).to(analysis)[:, None] * analysis


def _linear(tensor: Tensor, function: _Linear, adjoint: _Linear) -> Tensor:
    result: Tensor = _LinearMap.apply(tensor, function, adjoint)  # type: ignore[no-untyped-call]
    return result


class _LinearMap(torch.autograd.Function):
    """A linear function of one tensor, given with its adjoint: derivatives are as fast as the function."""

    @staticmethod
    def forward(tensor: Tensor, function: _Linear, adjoint: _Linear) -> Tensor:
        return function(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Linear, _Linear], output: Tensor) -> None:
        _, ctx.function, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _linear(gradient, ctx.adjoint, ctx.function), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _linear(tangent, ctx.function, ctx.adjoint)


class _Line:
    """Lines of pixels along `dim` with the steps to their neighbours; a step off either end is zero."""

    def __init__(self, pixels: Tensor, dim: int) -> None:
        size = pixels.shape[dim]
        shape = list(pixels.shape)
        shape[dim] = size + 1
        steps = pixels.new_empty(shape)
        steps.select(dim, 0).zero_()
        steps.select(dim, size).zero_()
        self.pixels, self.ahead, self.behind = pixels, steps.narrow(dim, 1, size), steps.narrow(dim, 0, size)
        self._inner = steps.narrow(dim, 1, size - 1)
        self._next, self._previous = pixels.narrow(dim, 1, size - 1), pixels.narrow(dim, 0, size - 1)
        self._curvature = torch.empty_like(pixels)
        self._curvature_is_stale = True

    def update(self) -> Self:
        """Take account of new values of the pixels."""
        torch.sub(self._next, self._previous, out=self._inner)
        self._curvature_is_stale = True
        return self

    @property
    def curvature(self) -> Tensor:
        if self._curvature_is_stale:
            torch.sub(self.ahead, self.behind, out=self._curvature)
            self._curvature_is_stale = False
        return self._curvature


class _LineAdjoint:
    """Where the transposes of a `_Line`'s parts add up."""

    def __init__(self, like: Tensor) -> None:
        self.pixels, self.ahead, self.behind, self.curvature = (torch.zeros_like(like) for _ in range(4))

    def total(self, dim: int) -> Tensor:
        """The pixels' share of all parts; to be called once."""
        size = self.pixels.shape[dim]
        ahead = self.ahead.add_(self.curvature).narrow(dim, 0, size - 1)
        behind = self.behind.sub_(self.curvature).narrow(dim, 1, size - 1)
        steps = ahead + behind
        self.pixels.narrow(dim, 1, size - 1).add_(steps)
        self.pixels.narrow(dim, 0, size - 1).sub_(steps)
        return self.pixels


class _Band(NamedTuple):
    """Weights along one axis for n frequencies of one kind, shaped to broadcast over (..., n, H, W)."""

    channels: slice  # where the n frequencies lie among the F channels
    mean: float
    ahead: Tensor
    behind: Tensor | None  # None: the negative of ahead
    tap: Tensor

    def apply(self, line: _Line, out: Tensor) -> None:
        """Write the n frequencies of lines."""
        if self.behind is None:
            torch.mul(line.curvature, self.ahead, out=out)
        else:
            torch.mul(line.ahead, self.ahead, out=out).addcmul_(line.behind, self.behind)
        if self.mean:
            out.add_(line.pixels, alpha=self.mean)

    def apply_adjoint(self, coefficients: Tensor, out: _LineAdjoint) -> None:
        """Add what n channels of coefficients contribute."""
        for index, channel in enumerate(torch.split(coefficients, 1, dim=-3)):
            if self.behind is None:
                out.curvature.addcmul_(channel, self.ahead[index])
            else:
                out.ahead.addcmul_(channel, self.ahead[index])
                out.behind.addcmul_(channel, self.behind[index])
            if self.mean:
                out.pixels.add_(channel, alpha=self.mean)

    def shrink(self, coefficients: Tensor, out: Tensor) -> None:
        """Add the samples of n channels of coefficients that shrinking keeps."""
        for channel, tap in zip(torch.split(coefficients, 1, dim=-3), self.tap, strict=True):
            out.addcmul_(channel, tap)

    def shrink_adjoint(self, pixels: Tensor, out: Tensor) -> None:
        """Write the n channels that one value of each pixel gives."""
        torch.mul(pixels, self.tap, out=out)


class _Plan(NamedTuple):
    """The linear maps between planes (N, H, W) and channels (N, F, H, W) of given size and frequencies."""

    channels: int
    group: int  # how many planes to work on at a time
    bands: list[tuple[_Band, list[_Band]]]  # each horizontal frequency, and the vertical ones wanted with it

    def analyse(self, planes: Tensor) -> Tensor:
        """Planes to channels: `block_dct` but for the colours."""
        channels = _empty((len(planes), self.channels, *planes.shape[1:]), planes)
        for source, target in self._groups(planes[:, None], channels):
            self._analyse_group(source, target)
        return channels

    def _analyse_group(self, source: Tensor, target: Tensor) -> None:
        columns = _Line(source, -1).update()
        rows = _Line(torch.empty_like(source), -2)
        for horizontal, verticals in self.bands:
            horizontal.apply(columns, out=rows.pixels)
            rows.update()
            for vertical in verticals:
                vertical.apply(rows, out=target[:, vertical.channels])

    def analyse_adjoint(self, channels: Tensor) -> Tensor:
        """Channels to planes, by the transpose of `analyse`."""
        planes = channels.new_empty(len(channels), 1, *channels.shape[2:])
        for target, source in self._groups(planes, channels):
            columns = _LineAdjoint(target)
            for horizontal, verticals in self.bands:
                rows = _LineAdjoint(target)
                for vertical in verticals:
                    vertical.apply_adjoint(source[:, vertical.channels], out=rows)
                horizontal.apply_adjoint(rows.total(-2), out=columns)
            target.copy_(columns.total(-1))
        return planes[:, 0]

    def synthesise(self, channels: Tensor) -> Tensor:
        """Channels to planes: `inverse_block_dct` but for the colours."""
        planes = channels.new_zeros(len(channels), 1, *channels.shape[2:])
        for target, source in self._groups(planes, channels):
            line = torch.empty_like(target)
            for horizontal, verticals in self.bands:
                line.zero_()
                for vertical in verticals:
                    vertical.shrink(source[:, vertical.channels], out=line)
                horizontal.shrink(line, out=target)
        return planes[:, 0]

    def synthesise_adjoint(self, planes: Tensor) -> Tensor:
        """Planes to channels, by the transpose of `synthesise`."""
        channels = _empty((len(planes), self.channels, *planes.shape[1:]), planes)
        for source, target in self._groups(planes[:, None], channels):
            line = torch.empty_like(source)
            for horizontal, verticals in self.bands:
                horizontal.shrink_adjoint(source, out=line)
                for vertical in verticals:
                    vertical.shrink_adjoint(line, out=target[:, vertical.channels])
        return channels

    def _groups(self, planes: Tensor, channels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(planes, self.group), torch.split(channels, self.group), strict=True)


def _plan(frequencies: tuple[int, ...], like: Tensor) -> _Plan:
    """The plan for planes of the size, dtype and device of `like` (..., H, W)."""
    # A tracer must not leave its stand-ins for tensors in the cache.
    make = _make_plan.__wrapped__ if torch.compiler.is_compiling() else _make_plan
    return make(frequencies, like.shape[-2], like.shape[-1], like.device, like.dtype)


@lru_cache(maxsize=64)
def _make_plan(
    frequencies: tuple[int, ...], height: int, width: int, device: torch.device, dtype: torch.dtype
) -> _Plan:
    wanted = defaultdict(list)
    for channel, frequency in enumerate(frequencies):
        vertical, horizontal = divmod(frequency, BLOCK)
        wanted[horizontal].append((vertical, channel))
    budget = _GROUP_BYTES_CPU if device.type == "cpu" else _GROUP_BYTES_OTHER
    with torch.inference_mode(False):  # or no gradient could ever pass through the cached weights
        bands = [
            (
                _band([(horizontal, 0)], width, -1, device, dtype),
                [_band(run, height, -2, device, dtype) for run in _runs(pairs)],
            )
            for horizontal, pairs in wanted.items()
        ]
    return _Plan(len(frequencies), max(1, budget // (height * width * dtype.itemsize)), bands)


def _runs(pairs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Split (frequency, channel) pairs, channels ascending, into runs of one kind and evenly spaced."""
    for kind in ({0}, {1, 3, 5, 7}, {2, 4, 6}):
        run: list[tuple[int, int]] = []
        for frequency, channel in pairs:
            if frequency not in kind:
                continue
            if len(run) > 1 and channel - run[-1][1] != run[1][1] - run[0][1]:
                yield run
                run = []
            run.append((frequency, channel))
        if run:
            yield run


def _band(run: list[tuple[int, int]], size: int, dim: int, device: torch.device, dtype: torch.dtype) -> _Band:
    """The weights of a run of (frequency, channel) pairs along `dim`, -1 or -2, of `size` pixels."""
    frequencies, channels = (list(column) for column in zip(*run, strict=True))
    step = channels[1] - channels[0] if len(run) > 1 else 1

    def tensor(weights: np.ndarray) -> Tensor:
        shaped = weights[:, None, :] if dim == -1 else weights[:, :, None]
        return torch.from_numpy(shaped).to(device=device, dtype=dtype)

    ahead, behind = (weights[frequencies] for weights in _step_weights(size))
    is_mean, is_even = frequencies == [0], frequencies[0] % 2 == 0
    return _Band(
        channels=slice(channels[0], channels[-1] + 1, step),
        mean=_MEAN if is_mean else 0.0,
        ahead=tensor(ahead),
        behind=None if is_even and not is_mean else tensor(behind),
        tap=tensor(_taps(size)[frequencies]),
    )


@lru_cache(maxsize=16)
def _step_weights(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (8, size) of the steps ahead of and behind each pixel, for each frequency.

    Sample k of block i lies `offset` pixels from pixel i, less than one: pixel i plus that part of a step.
    """
    pixel, sample = np.arange(size), np.arange(BLOCK)[:, None]
    offset = (sample * (size - 1) - (BLOCK - 1) * pixel) / (BLOCK * size - 1)
    return _basis() @ np.maximum(offset, 0), _basis() @ np.minimum(offset, 0)


@lru_cache(maxsize=16)
def _taps(size: int) -> np.ndarray:
    """Weights (8, size): pixel i of the shrunk image is block i at (8 - 1) * i / (size - 1), interpolated."""
    position = (BLOCK - 1) * np.arange(size) / (size - 1)
    return np.stack([np.interp(position, np.arange(BLOCK), wave) for wave in _basis()])


def _basis() -> np.ndarray:
    """The orthonormal DCT-II (8, 8): row u is the cosine of frequency u."""
    angle = np.pi * np.outer(np.arange(BLOCK), 2 * np.arange(BLOCK) + 1) / (2 * BLOCK)
    return np.cos(angle) * np.sqrt(np.where(np.arange(BLOCK)[:, None] == 0, 1, 2) / BLOCK)


# --- for exported graphs: the same in few operations, none of them in place ------------------------------------------
def _plain_analyse(planes: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    """`_Plan.analyse`: planes (N, H, W) to channels (N, F, H, W)."""
    verticals, horizontals = zip(*(divmod(frequency, BLOCK) for frequency in frequencies), strict=True)
    lines = _plain_line(planes[:, None], tuple(range(BLOCK)), -1)
    return _plain_line(lines[:, list(horizontals)], verticals, -2)


def _plain_line(pixels: Tensor, frequencies: tuple[int, ...], dim: int) -> Tensor:
    """One frequency along `dim`, -1 or -2, for each channel of (N, F or 1, H, W)."""
    size = pixels.shape[dim]
    steps = pixels.diff(dim=dim)
    nothing = torch.zeros_like(pixels.narrow(dim, 0, 1))
    ahead, behind = torch.cat([steps, nothing], dim), torch.cat([nothing, steps], dim)
    means = np.where(np.array(frequencies) == 0, _MEAN, 0.0)[:, None]
    mean, forward, backward = (
        _along(weights, dim, pixels) for weights in (means, *(each[list(frequencies)] for each in _step_weights(size)))
    )
    return mean * pixels + forward * ahead + backward * behind


def _plain_synthesise(channels: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    """`_Plan.synthesise`: channels (N, F, H, W) to planes (N, H, W)."""
    verticals, horizontals = (list(axis) for axis in zip(*(divmod(f, BLOCK) for f in frequencies), strict=True))
    height, width = channels.shape[2:]
    down = _along(_taps(height)[verticals], -2, channels)
    return (channels * down * _along(_taps(width)[horizontals], -1, channels)).sum(1)


def _along(weights: np.ndarray, dim: int, like: Tensor) -> Tensor:
    """Weights (F, size) shaped to broadcast over (N, F, H, W) along `dim`."""
    return torch.from_numpy(weights[:, None, :] if dim == -1 else weights[:, :, None]).to(like)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of `like`'s dtype and device.

    In main memory NumPy allocates it, which on Linux asks for huge pages: 64 frequencies of a batch are so
    large that mapping ordinary pages would take longer than the transform.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return like.new_empty(shape)
    cache_line = 64
    size = math.prod(shape) * like.element_size()
    memory = np.empty(size + cache_line, dtype=np.uint8)
    start = -memory.ctypes.data % cache_line
    return torch.from_numpy(memory[start : start + size]).view(like.dtype).view(shape)


def _checked_frequencies(frequencies: Iterable[int] | None) -> tuple[int, ...]:
    if frequencies is None:
        return tuple(range(FREQUENCIES))
    try:
        chosen = tuple(operator.index(frequency) for frequency in frequencies)
    except TypeError as error:
        raise ShapeError(f"frequencies are {frequencies!r}; expected a list of whole numbers in 0..63") from error
    if not chosen:
        raise ShapeError("frequencies are empty; expected at least one of 0..63, or None for all")
    outside = [frequency for frequency in chosen if not 0 <= frequency < FREQUENCIES]
    if outside:
        raise ShapeError(f"frequencies {outside} are out of range; expected 8 * v + u in 0..63")
    repeated = sorted(frequency for frequency, times in Counter(chosen).items() if times > 1)
    if repeated:
        raise ShapeError(f"frequencies {repeated} occur more than once; expected each at most once")
    return chosen


def _at_least_float32(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ShapeError(f"{name} have dtype {tensor.dtype}; expected a floating point dtype such as float32")
    return tensor if tensor.dtype == torch.float64 else tensor.float()
