"""Forward operators: a client under one hypothesis as an affine map of the image, and a test of whether it is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.attacks.inverse.face_prior import FacePrior, clamp_planes, to_images
from ppfr.methods.common.audit_hooks import Hypothesis

# images and channels held in float64 at once
_CHUNK, _CHANNELS = 8, 32
# channels that vary by less than this share of the strongest one's variation count as constant
_DEAD = 1e-9
_MIX = 0.3
# float32 rounding leaves an affine client within 1e-5 of affine, relative to its channels' variation
AFFINE_TOLERANCE = 1e-3


def send(hypothesis: Hypothesis, planes: Tensor) -> dict[str, Tensor]:
    """Tensors that the client sends of planes (B,3,H,W), YCbCr in grey levels with chroma around 0.

    The client gets float32, as from a camera, because its networks may support no other type.
    """
    return hypothesis.apply(to_images(planes).float())


def as_channels(tensor: Tensor) -> Tensor:
    """A payload tensor as (B,C,N); one without a channel axis has a single channel."""
    return tensor.flatten(2) if tensor.ndim > 2 else tensor.reshape(len(tensor), 1, -1)


def send_channels(hypothesis: Hypothesis, names: Sequence[str], planes: Tensor) -> list[Tensor]:
    """The tensors in `names` that the client sends of planes (B,3,H,W), as float64 channels (B,C,N)."""
    sent = send(hypothesis, planes)
    return [as_channels(sent[name]).double() for name in names]


@dataclass(frozen=True)
class Survey:
    """Statistics of the tensors that a client sends of typical faces, under one hypothesis.

    `deviation[name]` is the deviation of a tensor from an affine function of the image, as a fraction of its variation,
    in the worst channel: 0 for a constant tensor, infinite for one of integers, which the other statistics leave out.
    `average[name]` (C,N) is the output for the mean face, `scale[name]` (C,) the root mean square of other outputs less
    that (0 for a constant channel), `profile[name]` (n,C) the `log_energy` of each sample's output.
    """

    deviation: dict[str, float]
    average: dict[str, Tensor]
    scale: dict[str, Tensor]
    profile: dict[str, Tensor]


@torch.no_grad()
def survey(hypothesis: Hypothesis, prior: FacePrior) -> Survey:
    """The statistics of a hypothesis, from a prior's mean, its samples and mixtures of them."""
    samples = clamp_planes(prior.samples)
    half = len(samples) // 2
    mixed = _MIX * samples[:half] + (1 - _MIX) * samples[half : 2 * half]
    planes = torch.cat([prior.mean[None], samples, mixed])
    parts = [send(hypothesis, chunk) for chunk in torch.split(planes, _CHUNK)]
    result = Survey({}, {}, {}, {})
    for name in parts[0]:
        answers = as_channels(torch.cat([part[name] for part in parts]))
        if not answers.is_floating_point():
            result.deviation[name] = float("inf")
            continue
        blocks = [_measure(block, len(samples)) for block in torch.split(answers, _CHANNELS, dim=1)]
        scale, error, energy = (torch.cat(columns, dim=-1) for columns in zip(*blocks, strict=True))
        live = scale > _DEAD * scale.max()
        result.deviation[name] = float((error[live] / scale[live]).max()) if bool(live.any()) else 0.0
        result.average[name] = answers[0].double()
        result.scale[name] = torch.where(live, scale, torch.zeros_like(scale))
        result.profile[name] = energy - energy.mean(1, keepdim=True)
    return result


def _measure(answers: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (C,), error (C,) of mixtures and log energy (samples,C), of answers to mean, samples and mixtures."""
    answers = answers.double()
    half = samples // 2
    plain, blend = answers[1 : 1 + samples], answers[1 + samples :]
    added = plain - answers[0]
    error = blend - _MIX * plain[:half] - (1 - _MIX) * plain[half : 2 * half]
    return added.square().mean((0, 2)).sqrt(), error.square().mean((0, 2)).sqrt(), _log_rms(added)


def _log_rms(channels: Tensor) -> Tensor:
    return channels.square().mean(2).clamp_min(1e-30).log() / 2


def log_energy(channels: Tensor) -> Tensor:
    """Logarithm (B,C) of the root mean square of channels (B,C,N), less its mean over the channels.

    Without that mean it does not depend on the contrast of an image.
    """
    energy = _log_rms(channels)
    return energy - energy.mean(1, keepdim=True)


def affine_tensors(surveys: Sequence[Survey]) -> tuple[str, ...]:
    """Names of the tensors that are affine in the image under every hypothesis, constant ones included."""
    return tuple(
        name for name in surveys[0].deviation if all(found.deviation[name] <= AFFINE_TOLERANCE for found in surveys)
    )


def depends_on_image(surveys: Sequence[Survey], name: str) -> bool:
    """Whether a tensor changes with the image, under any hypothesis."""
    return any(bool(found.scale[name].any()) for found in surveys)


class AffineClient:
    """The affine tensors of a hypothesis as one linear map from planes to channels, and a constant.

    Planes are YCbCr (B,3,H,W) in grey levels, chroma around 0; channels are a list of float64 (B,C,N), one for each
    name.
    """

    def __init__(self, hypothesis: Hypothesis, names: Sequence[str], like: Tensor) -> None:
        self.hypothesis = hypothesis
        self.names = tuple(names)
        self.zero = torch.zeros_like(like)[None]
        with torch.no_grad():
            self.constant = self._channels(self.zero)

    def _channels(self, planes: Tensor) -> list[Tensor]:
        return send_channels(self.hypothesis, self.names, planes)

    @torch.no_grad()
    def forward(self, planes: Tensor) -> list[Tensor]:
        """The linear part of the client: planes to channels."""
        parts = [self._channels(chunk) for chunk in torch.split(planes, _CHUNK)]
        return [torch.cat([part[i] for part in parts]) - constant for i, constant in enumerate(self.constant)]

    def adjoint(self, channels: Sequence[Tensor]) -> Tensor:
        """The transpose of `forward`, by automatic differentiation: channels to planes (B,3,H,W)."""
        parts = []
        for chunk in zip(*(torch.split(tensor, _CHUNK) for tensor in channels), strict=True):
            with torch.enable_grad():
                planes = self.zero.expand(len(chunk[0]), -1, -1, -1).clone().requires_grad_()
                answers = self._channels(planes)
            parts.append(torch.autograd.grad(answers, planes, chunk)[0])
        return torch.cat(parts)
