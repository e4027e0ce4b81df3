"""The DCT coding: block-DCT channels as the cosine transform of the three colour planes they are linear in.

Channel (v, u) of a colour is M_v X M_u^T for one colour plane X (`ppfr.transforms.dct`), so tens of channels hold what
one plane holds. The coder is a public function of the channels alone: it identifies their frequencies, solves for the
least-norm plane that produces them, and quantises the plane's cosine transform with steps that put the same relative
error into all channels. What the channels do not determine is neither known to it nor sent; what they do determine is
exactly what linear inversion (`ppfr.attacks.recovery.linear_inversion`) recovers from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.linalg

from ppfr.transforms.dct import BLOCK, FREQUENCIES, frequency_matrix
from ppfr.util.errors import PayloadError

Array = npt.NDArray[np.float64]

COLOURS = 3
# a channel has a frequency when the combination that the frequency forbids is this small a share of its lines
_EXPLAINED = 1e-5
_ODD, _EVEN = np.array([1, 3, 5, 7]), np.array([2, 4, 6])
_RIDGE = 1e-10
_LARGEST_LEVEL = 32767
# share of the strongest channel's energy below which a channel is rounding noise of single precision
_FAINT = 1e-8
# other frequencies are accepted only if they leave less than this share of the error
_BETTER = 0.9


class CodedChannels(NamedTuple):
    """One image's channels, coded: frequencies (F,), their weights (F,), a step a colour (3,) and levels (3,H,W)."""

    frequencies: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int16]


def encode_channels(channels: Array, error: float) -> CodedChannels:
    """Code channels (3, F, H, W) with a relative error of about `error`, averaged over channels.

    Raises PayloadError when they are not the block DCT of three colour planes.
    """
    if not np.isfinite(channels).all():
        raise PayloadError("channels hold values that are not finite; they cannot be coded")
    coded = _code(channels, find_frequencies(channels), error)
    misfits = _misfits(channels, coded)
    while misfits.max() > _allowed(error):
        # the edges of an image tell even frequencies apart; where they are flat, try the other ones
        others = [_code(channels, changed, error) for changed in _other_even(coded.frequencies)]
        tried = [_misfits(channels, other) for other in others]
        best = int(np.argmin([float(np.sum(found**2)) for found in tried])) if tried else 0
        if not tried or np.sum(tried[best] ** 2) > _BETTER * np.sum(misfits**2):
            break
        misfits, coded = tried[best], others[best]
    found = float(misfits.max())
    if found > _allowed(error):
        if np.abs(coded.levels).max() == _LARGEST_LEVEL:
            raise PayloadError(f"error {error:g} needs levels beyond 16 bits; choose a larger one")
        raise PayloadError(
            f"channels come back with a relative error of {found:.3g} where {error:.3g} is asked: they are not the "
            "block DCT of three colour planes; send them as float16 or int8"
        )
    return coded


def _code(channels: Array, frequencies: npt.NDArray[np.uint8], error: float) -> CodedChannels:
    """Code channels as if they had the given frequencies; levels are clipped to 16 bits."""
    energy = np.mean(channels**2, axis=(2, 3))
    colour = energy.sum(1)
    weights = _weights((energy / np.where(colour, colour, 1)[:, None]).mean(0))
    size = (channels.shape[2], channels.shape[3])
    planes = _solve(channels, frequencies, weights.astype(np.float64))
    steps = (error * np.sqrt(12 * len(frequencies) * colour)).astype(np.float32)
    shape = _step_shape(frequencies, weights, size)
    levels = np.round(scipy.fft.dctn(planes, axes=(1, 2), norm="ortho") / (_or_one(steps)[:, None, None] * shape))
    return CodedChannels(frequencies, weights, steps, levels.clip(-_LARGEST_LEVEL, _LARGEST_LEVEL).astype(np.int16))


def _other_even(frequencies: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """The frequencies with one of them replaced along one axis by another even one that no channel has yet."""
    for place, frequency in enumerate(frequencies.tolist()):
        for along, other in ((frequency % BLOCK, 1), (frequency // BLOCK, BLOCK)):
            for even in (0, *_EVEN.tolist()):
                wanted = frequency + (even - along) * other
                if along % 2 == 0 and wanted not in frequencies:
                    changed = frequencies.copy()
                    changed[place] = wanted
                    yield changed


def _weights(shares: Array) -> npt.NDArray[np.float32]:
    """The inverse of each channel's share of the energy, 0 for an empty channel."""
    return np.where(shares > 1e-16, 1 / np.maximum(shares, 1e-16), 0).astype(np.float32)


def decode_channels(coded: CodedChannels) -> Array:
    """The channels (3, F, H, W) that `encode_channels` coded."""
    frequencies, weights, steps, levels = coded
    size = (levels.shape[1], levels.shape[2])
    spectra = levels * (steps.astype(np.float64)[:, None, None] * _step_shape(frequencies, weights, size))
    planes = scipy.fft.idctn(spectra, axes=(1, 2), norm="ortho")
    channels = np.empty((COLOURS, len(frequencies), *size))
    rows, columns = _matrices(size[0]), _matrices(size[1])
    for vertical in {int(frequency) // BLOCK for frequency in frequencies}:
        lines = rows[vertical] @ planes
        for channel, frequency in enumerate(frequencies):
            if frequency // BLOCK == vertical:
                channels[:, channel] = lines @ columns[frequency % BLOCK].T
    return channels


def _misfits(channels: Array, coded: CodedChannels) -> Array:
    """The relative error (F,) with which each channel comes back; 0 for channels of rounding noise."""
    energy = np.sum(channels**2, axis=(0, 2, 3))
    errors = np.sum((channels - decode_channels(coded)) ** 2, axis=(0, 2, 3))
    counted = energy > _FAINT * energy.max()
    return np.sqrt(np.where(counted, errors / np.where(counted, energy, 1), 0))


def _allowed(error: float) -> float:
    """The relative error above which channels are no block DCT, for a requested `error`."""
    return 4 * error + 1e-3


def find_frequencies(channels: Array) -> npt.NDArray[np.uint8]:
    """The frequencies 8 v + u (F,) of channels (3, F, H, W), from their values alone."""
    horizontal = _axis_frequencies(channels)
    vertical = _axis_frequencies(channels.swapaxes(2, 3))
    return (vertical * BLOCK + horizontal).astype(np.uint8)


def _axis_frequencies(channels: Array) -> npt.NDArray[np.int64]:
    """The frequency (F,) along the last axis.

    A line of odd frequency depends on the N - 1 steps between N pixels and shows all of them, so one combination of its
    N values is always zero, another one for each frequency. In a line of even frequency above 0 the curvature of the
    image is multiplied by a wave that is zero at both ends and whose other zeros identify the frequency.
    """
    forbidden = _null_vectors(channels.shape[3])
    power = np.sum((channels @ forbidden.T) ** 2, axis=(0, 2))
    energy = np.sum(channels**2, axis=(0, 2))
    usual = energy @ (forbidden**2).T
    share = np.sqrt(power / np.where(usual, usual, 1))
    even = np.where(energy[:, 0] > _EXPLAINED**2 * energy.mean(1), 0, _EVEN[_even_misfit(energy).argmin(1)])
    return np.where(share.min(1) < _EXPLAINED, _ODD[share.argmin(1)], even)


def _even_misfit(energy: Array) -> Array:
    """Distance (F, 3) of energies (F, N) along a line from those of frequencies 2, 4 and 6, up to a smooth factor."""
    waves = _waves(energy.shape[1])
    level = np.log(energy + 1e-6 * energy.mean(1, keepdims=True) + 1e-30)
    misfit = level[:, None] - np.log(waves + 1e-6 * waves.mean(1, keepdims=True))
    return np.asarray(np.var(np.diff(misfit, axis=2), axis=2))


@lru_cache(maxsize=8)
def _null_vectors(size: int) -> Array:
    """The unit vectors (4, size) that every line of frequency 1, 3, 5 and 7 is orthogonal to."""
    return np.stack([scipy.linalg.svd(_matrices(size)[frequency])[0][:, -1] for frequency in _ODD])


@lru_cache(maxsize=8)
def _waves(size: int) -> Array:
    """Energies (3, size) that frequencies 2, 4 and 6 give to lines of equal curvature."""
    return np.stack([np.diag(_matrices(size)[frequency]) ** 2 for frequency in _EVEN])


@lru_cache(maxsize=8)
def _matrices(size: int) -> Array:
    """M_u for u = 0..7, (8, size, size)."""
    return np.stack([frequency_matrix(size, frequency).numpy() for frequency in range(BLOCK)])


@lru_cache(maxsize=8)
def _gains(size: int) -> Array:
    """Energy (8, size) that frequency u gives each basis wave of the cosine transform of a line."""
    waves = scipy.fft.idct(np.eye(size), axis=0, norm="ortho")
    return np.asarray(np.sum((_matrices(size) @ waves) ** 2, axis=1))


def _step_shape(frequencies: npt.NDArray[np.uint8], weights: npt.NDArray[np.float32], size: tuple[int, int]) -> Array:
    """Relative quantisation steps (H, W): the less a wave contributes to the weighted channels, the larger."""
    rows, columns = _gains(size[0])[frequencies // BLOCK], _gains(size[1])[frequencies % BLOCK]
    gain = np.einsum("f,fh,fw->hw", weights.astype(np.float64), rows, columns)
    return np.asarray(1 / np.sqrt(np.maximum(gain, max(1e-12 * gain.max(), 1e-300))))


def _solve(channels: Array, frequencies: npt.NDArray[np.uint8], weights: Array) -> Array:
    """The planes (3, H, W) of least norm whose channels are nearest, by the normal equations: a matrix of 5x5 bands."""
    _, _, height, width = channels.shape
    rows, columns = _matrices(height), _matrices(width)
    right = np.zeros((COLOURS, height, width))
    bands = np.zeros((2 * width + 3, height * width))
    for weight, frequency, channel in zip(weights, frequencies, channels.swapaxes(0, 1), strict=True):
        vertical, horizontal = rows[frequency // BLOCK], columns[frequency % BLOCK]
        right += weight * (vertical.T @ channel @ horizontal)
        for down, across, product in _kronecker_bands(vertical.T @ vertical, horizontal.T @ horizontal):
            offset = down * width + across
            bands[offset, : height * width - offset] += weight * product[: height * width - offset]
    bands[0] += max(_RIDGE * bands[0].max(), 1e-300)
    flat = scipy.linalg.solveh_banded(
        bands, right.reshape(COLOURS, -1).T, lower=True, overwrite_ab=True, check_finite=False
    )
    return np.asarray(flat.T.reshape(right.shape))


def _kronecker_bands(vertical: Array, horizontal: Array) -> list[tuple[int, int, Array]]:
    """The diagonals on and below the main one of the Kronecker product of two matrices of five bands."""
    result = []
    for down in range(3):
        column = np.pad(np.diag(vertical, -down), (0, down))
        for across in range(-2 if down else 0, 3):
            # entry (row + across, row) of the horizontal factor, by the column it stands in
            band = np.diag(horizontal, -across)
            line = np.pad(band, (0, across)) if across >= 0 else np.pad(band, (-across, 0))
            result.append((down, across, np.outer(column, line).ravel()))
    return result


def _or_one(steps: npt.NDArray[np.float32]) -> Array:
    return np.where(steps > 0, steps, 1).astype(np.float64)


__all__ = ["COLOURS", "FREQUENCIES", "CodedChannels", "decode_channels", "encode_channels", "find_frequencies"]
