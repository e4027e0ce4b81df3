"""A client under one hypothesis as an affine map of the image, and a check that it is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.attacks.priors import FacePrior, clamp_planes, to_images
from ppfr.errors import AttackError
from ppfr.methods.base import Hypothesis

_CHUNK = 16
_MIX = 0.3
# float32 rounding leaves an affine client within 1e-5 of affine, relative to its channels' variation
_AFFINE_TOLERANCE = 1e-3


def as_channels(tensor: Tensor) -> Tensor:
    """A payload tensor as float64 (B,C,N); one without a channel axis has a single channel."""
    return tensor.double().flatten(2) if tensor.ndim > 2 else tensor.double().reshape(len(tensor), 1, -1)


@dataclass(frozen=True)
class Survey:
    """How a hypothesis answers typical faces.

    `deviation[name]` is how far a tensor is from affine in the image (0 for an affine one, infinite for one that is
    constant or not of floats), `average[name]` what the mean face gives (C,N), `scale[name]` (C,) the root mean square
    of what other faces add to that, `profile[name]` the logarithm of the same for each sample (n,C).
    """

    deviation: dict[str, float]
    average: dict[str, Tensor]
    scale: dict[str, Tensor]
    profile: dict[str, Tensor]


@torch.no_grad()
def survey(hypothesis: Hypothesis, prior: FacePrior) -> Survey:
    """Send a prior's samples, mixtures of them and its mean through a hypothesis."""
    samples = clamp_planes(prior.samples)
    half = len(samples) // 2
    mixed = _MIX * samples[:half] + (1 - _MIX) * samples[half : 2 * half]
    sent = _send(hypothesis, torch.cat([prior.mean[None], samples, mixed]))
    result = Survey({}, {}, {}, {})
    for name, tensor in sent.items():
        answers = as_channels(tensor)
        average, plain, blend = answers[0], answers[1 : 1 + len(samples)], answers[1 + len(samples) :]
        added = plain - average
        scale = added.square().mean((0, 2)).sqrt()
        error = blend - _MIX * plain[:half] - (1 - _MIX) * plain[half : 2 * half]
        live = scale > 0
        if not tensor.is_floating_point() or not bool(live.any()):
            result.deviation[name] = float("inf")
        else:
            result.deviation[name] = float((error.square().mean((0, 2)).sqrt()[live] / scale[live]).max())
        result.average[name] = average
        result.scale[name] = scale
        result.profile[name] = log_energy(added)
    return result


def log_energy(channels: Tensor) -> Tensor:
    """Logarithm of the root mean square of channels (B,C,N), (B,C), less its mean over the channels.

    Taking the mean off makes it blind to the contrast of an image.
    """
    energy = channels.square().mean(2).clamp_min(1e-30).log() / 2
    return energy - energy.mean(1, keepdim=True)


def affine_tensors(surveys: Sequence[Survey], method: str, hypotheses: Sequence[Hypothesis]) -> tuple[str, ...]:
    """Names of the tensors that are affine in the image under every hypothesis.

    Raises AttackError naming the method, the hypothesis and how far each tensor is from affine, when there is none.
    """
    names = [
        name
        for name in surveys[0].deviation
        if all(found.deviation.get(name, float("inf")) <= _AFFINE_TOLERANCE for found in surveys)
    ]
    if not names:
        worst = max(surveys, key=lambda found: min(found.deviation.values()))
        far = ", ".join(f"{name!r} by {value:.2g}" for name, value in worst.deviation.items())
        raise AttackError(
            f"{method} is not linear given its secrets: under hypothesis {hypotheses[surveys.index(worst)].name!r} its "
            f"tensors deviate from affine in the image ({far} of their variation; at most {_AFFINE_TOLERANCE:g} is "
            "rounding; inf: no change with the image at all). Use an attack for clients that are not linear"
        )
    return tuple(names)


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
        sent = self.hypothesis.apply(to_images(planes))
        return [as_channels(sent[name]) for name in self.names]

    @torch.no_grad()
    def forward(self, planes: Tensor) -> list[Tensor]:
        """The linear part of what the client sends."""
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


@torch.no_grad()
def _send(hypothesis: Hypothesis, planes: Tensor) -> Mapping[str, Tensor]:
    parts = [hypothesis.apply(to_images(chunk)) for chunk in torch.split(planes, _CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
