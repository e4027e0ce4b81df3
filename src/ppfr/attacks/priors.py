"""What an attacker believes about faces before seeing a payload."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.transforms.color import join_luma_chroma, split_luma_chroma

_MOST_FACES = 256
_SAMPLES = 12
_HALF_RANGE = 127.5


@dataclass(frozen=True)
class FacePrior:
    """A mean face, how far faces stray from it, and how steep their edges are; all in YCbCr grey levels (0..255).

    `mean` (3,H,W) has Y in 0..255 and chroma around 0; `deviation` (3,) is the root mean square distance of a pixel
    from it, `gradient` (3,) the mean absolute difference of neighbouring pixels, and `samples` (n,3,H,W) are faces to
    measure a client's typical output with.
    """

    mean: Tensor
    deviation: Tensor
    gradient: Tensor
    samples: Tensor
    description: str


def faces_prior(faces: Tensor) -> FacePrior:
    """Measure a prior on public faces (n,3,H,W) RGB in [-1,1]; at most 256 of them, evenly spaced, are used."""
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
    """A prior without data: mid-grey, and the spread and edges of ordinary photographs.

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
