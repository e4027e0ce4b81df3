"""Multichannel Wiener filter: the best linear estimate of an image from payload maps, by spatial frequency."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 16
# weight of the identity, as a share of a frequency's mean power
_RIDGE = 1e-3
_DEAD = 1e-6


class WienerFilter:
    """Estimates images (B,3,H,W) in [-1,1] from payload maps by a multichannel Wiener filter for each cluster.

    With Y(f) the maps' Fourier coefficients at spatial frequency f and X(f) the image's, the filter is
    E[X Y*] E[Y Y*]^-1, both expectations taken over training pairs and the neighbouring frequencies (Wiener 1949;
    several channels: Galatsanos and Chin, IEEE TASSP 1989). Its support is the whole image, so it recovers low
    frequencies from channels that each pass high ones alone. It assumes that the client is shift-invariant.
    """

    def __init__(self, maps: Tensor, clusters: Tensor, number: int, images: Tensor) -> None:
        """Fit to maps (n,C,H,W) of the clusters (n,), of `number` in all, and the images (n,3,H,W) behind them."""
        self.face = images.mean(0)
        rows = [(clusters == cluster).nonzero().flatten() for cluster in range(number)]
        fitted = [_fit_cluster(maps, images, own, self.face) for own in rows]
        self._mean, self._scale, self._filter = (torch.stack(parts) for parts in zip(*fitted, strict=True))

    def normalised(self, maps: Tensor, clusters: Tensor) -> Tensor:
        """Maps less the mean of their cluster, of unit variance."""
        return (maps - self._mean[clusters]) * self._scale[clusters]

    def __call__(self, normalised: Tensor, clusters: Tensor) -> Tensor:
        """Images (B,3,H,W) within [-1,1], from `normalised` maps."""
        if not normalised.shape[1]:
            return self.face.expand(len(normalised), -1, -1, -1)
        spectrum = torch.fft.rfft2(normalised)
        estimate = spectrum.new_zeros((len(normalised), 3, *spectrum.shape[2:]))
        for cluster in torch.unique(clusters).tolist():
            own = (clusters == cluster).nonzero().flatten()
            found = self._filter[cluster] @ spectrum[own].permute(2, 3, 1, 0)
            estimate[own] = found.permute(3, 2, 0, 1)
        images: Tensor = torch.fft.irfft2(estimate, s=tuple(normalised.shape[2:]))
        return (images + self.face).clamp(-1, 1)


def _fit_cluster(maps: Tensor, images: Tensor, own: Tensor, face: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,H,W), scale (C,1,1) and filter (H,W//2+1,3,C) of the cluster of the rows `own`.

    All zero where fewer than two are.
    """
    channels, (height, width) = maps.shape[1], face.shape[1:]
    grid = (height, width // 2 + 1)
    cross = torch.zeros(*grid, 3, channels, dtype=torch.complex64, device=face.device)
    if len(own) < 2 or not channels:
        return face.new_zeros((channels, height, width)), face.new_zeros((channels, 1, 1)), cross
    parts = torch.split(own, _CHUNK)
    mean = torch.stack([maps[part].float().sum(0) for part in parts]).sum(0) / len(own)
    energy = torch.stack([(maps[part].float() - mean).square_().sum((0, 2, 3)) for part in parts]).sum(0)
    deviation = (energy / (len(own) * height * width)).sqrt()[:, None, None]
    scale = torch.where(deviation > _DEAD, 1 / deviation.clamp_min(_DEAD), 0.0)
    power = torch.zeros(*grid, channels, channels, dtype=torch.complex64, device=face.device)
    for part in parts:
        known = torch.fft.rfft2((maps[part].float() - mean) * scale).permute(2, 3, 1, 0).contiguous()
        wanted = torch.fft.rfft2(images[part] - face).permute(2, 3, 1, 0).contiguous()
        # conjugated at once: products of lazily conjugated batches are computed one matrix at a time
        transposed = known.conj().resolve_conj().mT
        power += known @ transposed
        cross += wanted @ transposed
    return mean, scale, torch.stack([_solve_line(power, cross, line) for line in range(height)])


def _solve_line(power: Tensor, cross: Tensor, line: int) -> Tensor:
    """The filter (W//2+1,3,C) of one line of frequencies."""
    left, right = _with_neighbours(power, line), _with_neighbours(cross, line)
    strength = left.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    left.diagonal(dim1=-2, dim2=-1).add_((_RIDGE * strength + _DEAD)[:, None])
    solved: Tensor = torch.linalg.solve(left, right.mH.resolve_conj())
    return solved.mH.resolve_conj()


def _with_neighbours(spectrum: Tensor, line: int) -> Tensor:
    """One line of frequencies, each smoothed with half of its neighbours, so that few training pairs suffice."""
    own = spectrum[line] + 0.5 * (spectrum[line - 1] + spectrum[(line + 1) % len(spectrum)])
    result = own.clone()
    result[1:].add_(own[:-1], alpha=0.5)
    result[:-1].add_(own[1:], alpha=0.5)
    return result
