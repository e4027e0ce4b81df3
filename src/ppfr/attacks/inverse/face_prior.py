"""Face priors: mean, variance, edges and spectrum of faces, in YCbCr planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.transforms.color import join_luma_chroma, split_luma_chroma

_MOST_FACES = 256
_SAMPLES = 12
_HALF_RANGE = 127.5
# no spatial frequency is taken to vary by less than so many grey levels
_LEAST_DEVIATION = 0.1
# the Charbonnier threshold: edges below this share of a usual one are penalised by their squares
_FLAT_EDGE = 0.1


@dataclass(frozen=True)
class FacePrior:
    """Mean face, standard deviation and mean edge of faces, in YCbCr planes of grey levels (0..255).

    `mean` (3,H,W) has Y in 0..255 and chroma around 0; `deviation` (3,) is the root mean square distance of a pixel
    from it, `gradient` (3,) the mean absolute difference of neighbouring pixels, and `samples` (n,3,H,W) are faces to
    estimate a client's typical output from.
    """

    mean: Tensor
    deviation: Tensor
    gradient: Tensor
    samples: Tensor
    description: str

    def total_variation(self, planes: Tensor) -> Tensor:
        """Charbonnier-smoothed total variation (B,) of planes (B,3,H,W), in units of the mean edge."""
        usual = self.gradient.to(planes)[:, None, None]
        rounded = [(edge.square() + (_FLAT_EDGE * usual).square()).sqrt() for edge in gradients(planes)]
        return (rounded[0] / usual).sum((1, 2, 3)) + (rounded[1] / usual).sum((1, 2, 3))

    def edge_weights(self, planes: Tensor) -> list[Tensor]:
        """Weights of squared vertical and horizontal edges that give `total_variation` its derivative at `planes`."""
        usual = self.gradient.to(planes)[:, None, None]
        return [1 / (usual * (edge.square() + (_FLAT_EDGE * usual).square()).sqrt()) for edge in gradients(planes)]


def face_prior(faces: Tensor | None, size: tuple[int, int], device: torch.device) -> FacePrior:
    """`faces_prior` of public faces, or `smooth_prior` without any (None)."""
    return smooth_prior(size, device) if faces is None else faces_prior(faces)


def faces_prior(faces: Tensor) -> FacePrior:
    """Estimate a prior from public faces (n,3,H,W) RGB in [-1,1]; at most 256 of them, evenly spaced, are used."""
    step = -(-len(faces) // _MOST_FACES)
    planes = to_planes(faces[::step].double())
    mean = planes.mean(0)
    return FacePrior(
        mean=mean,
        deviation=(planes - mean).square().mean((0, 2, 3)).sqrt().clamp_min(1.0),
        gradient=torch.stack([part.abs().mean((0, 2, 3)) for part in gradients(planes)]).mean(0).clamp_min(0.1),
        samples=planes[:: -(-len(planes) // _SAMPLES)],
        description=f"mean and edges of {len(planes)} public faces",
    )


def smooth_prior(size: tuple[int, int], device: torch.device) -> FacePrior:
    """A prior without data: mid-grey, and the variance and edges of ordinary photographs.

    The samples are random fields whose amplitude falls with the inverse of spatial frequency, as that of natural
    images does (Field, JOSA A 1987), from a fixed seed.
    """
    mean = torch.zeros(3, *size, dtype=torch.float64, device=device)
    mean[0] = _HALF_RANGE
    deviation = mean.new_tensor([60.0, 12.0, 12.0])
    noise = torch.randn((_SAMPLES, 3, *size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.fft.fftfreq(size[0]).abs(), torch.fft.fftfreq(size[1]).abs()
    radius = torch.hypot(rows[:, None].double(), columns.double()).clamp_min(1.0 / max(size))
    fields = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real.to(device)
    fields = fields / fields.square().mean((2, 3), keepdim=True).sqrt()
    return FacePrior(
        mean=mean,
        deviation=deviation,
        gradient=mean.new_tensor([8.0, 1.0, 1.0]),
        samples=mean + deviation[:, None, None] * fields,
        description="mid-grey and edges of ordinary photographs; no face was used",
    )


class SpectralFaces:
    """A Gaussian prior of faces with an isotropic power spectrum, in whitened coefficients.

    A face is mean + F^-1(deviation(f) * z(f)) with z of unit variance at every frequency, so that one step size suits
    coarse and fine structure. The deviations are root mean squares over rings of equal frequency, of a prior's samples
    less its mean.
    """

    def __init__(self, prior: FacePrior) -> None:
        self.mean = prior.mean.float()
        self._size = tuple(prior.mean.shape[1:])
        # on the CPU, where sums come in the same order every time
        power = torch.fft.rfft2((prior.samples - prior.mean).cpu(), norm="ortho").abs().square().mean(0)
        rings = _rings(self._size)
        counts = torch.bincount(rings.flatten()).clamp_min(1)
        sums = [torch.bincount(rings.flatten(), plane.flatten()) / counts for plane in power]
        deviation = torch.stack([total[rings] for total in sums]).sqrt().clamp_min(_LEAST_DEVIATION)
        self.deviation = deviation.to(self.mean)

    def start(self, count: int) -> Tensor:
        """Coefficients of the mean face: zeros (count,3,H,W//2+1,2)."""
        return self.mean.new_zeros((count, *self.deviation.shape, 2))

    def planes(self, white: Tensor) -> Tensor:
        """Planes (B,3,H,W) of whitened coefficients (B,3,H,W//2+1,2)."""
        spectrum = torch.view_as_complex(white) * self.deviation
        added: Tensor = torch.fft.irfft2(spectrum, s=self._size, norm="ortho")
        return self.mean + added


def _rings(size: tuple[int, ...]) -> Tensor:
    """The number of the ring of equal frequency (H,W//2+1) that each coefficient of `rfft2` lies on."""
    rows, columns = torch.fft.fftfreq(size[0]), torch.fft.rfftfreq(size[1])
    return (torch.hypot(rows[:, None], columns) * max(size)).round().long()


def to_planes(images: Tensor) -> Tensor:
    """YCbCr planes in grey levels, chroma around 0, of RGB images in [-1,1]."""
    return torch.stack(split_luma_chroma((images + 1) * _HALF_RANGE), dim=-3)


def to_images(planes: Tensor) -> Tensor:
    """The inverse of `to_planes`, not clamped."""
    return join_luma_chroma(*planes.unbind(-3)) / _HALF_RANGE - 1


def clamp_planes(planes: Tensor) -> Tensor:
    """Planes whose RGB values lie in 0..255, by clamping those."""
    return to_planes(to_images(planes).clamp(-1, 1))


def gradients(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal differences of neighbouring pixels."""
    return planes[..., 1:, :] - planes[..., :-1, :], planes[..., :, 1:] - planes[..., :, :-1]


def divergence(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The adjoint of `gradients`."""
    result = vertical.new_zeros((*vertical.shape[:-2], vertical.shape[-2] + 1, vertical.shape[-1]))
    result[..., 1:, :] += vertical
    result[..., :-1, :] -= vertical
    result[..., :, 1:] += horizontal
    result[..., :, :-1] -= horizontal
    return result
