"""Margin softmax heads: ArcFace, CosFace, CurricularFace, AdaFace; and plain softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppfr.heads.base import Head, MarginHead
from ppfr.util.errors import MethodError

# sin(theta) is kept from 0, where its slope against the cosine is infinite; this is 0.06 degrees
_LEAST_SQUARED_SINE = 1e-6


class ArcFaceHead(MarginHead):
    """Additive angular margin: cos(theta + margin) for the label (Deng et al. 2019, "ArcFace", section 2.1).

    Where theta + margin would pass pi the label's cosine is lowered by margin * sin(margin) instead, as in
    the references; with `easy_margin` labels beyond 90 degrees are left as they are. Unlike the references,
    the gradient is finite at a cosine of exactly 1.
    """

    options = (*MarginHead.options, "easy_margin")

    def __init__(self, *, easy_margin: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.easy_margin = easy_margin

    def positives(self, target: Tensor, embeddings: Tensor) -> Tensor:
        shifted = _add_angle(target, self.margin)
        if self.easy_margin:
            return torch.where(target > 0, shifted, target)
        return _unless_past_pi(target, shifted, self.margin)


class CosFaceHead(MarginHead):
    """Additive cosine margin: cos(theta) - margin for the label (Wang et al. 2018, "CosFace")."""

    default_margin = 0.4

    def positives(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return target - self.margin


class CurricularFaceHead(MarginHead):
    """ArcFace's margin, and hard negatives that weigh more as training goes on (Huang et al. 2020, section
    3.2).

    A negative whose cosine c exceeds the label's cosine with margin becomes c * (t + c). The buffer `t` is
    the moving average of the labels' cosines, with `alpha` the weight of the newest batch; it moves in
    training mode only.
    """

    t: Tensor

    options = (*MarginHead.options, "alpha")

    def __init__(self, *, alpha: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.alpha = _share("alpha", alpha)
        self.register_buffer("t", torch.zeros(1))

    def observe(self, target: Tensor, embeddings: Tensor) -> None:
        if self.training:
            _move(self.t, self.ranks.gather(target.detach()).mean(), self.alpha)

    def positives(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return _unless_past_pi(target, _add_angle(target, self.margin), self.margin)

    def negatives(self, scores: Tensor, target: Tensor) -> Tensor:
        hard = scores > _add_angle(target, self.margin)
        return torch.where(hard, scores * (self.t + scores), scores)


class AdaFaceHead(MarginHead):
    """Margin by image quality, read from the embedding's norm (Kim et al. 2022, "AdaFace", section 3.3).

    With q the norm standardised by moving statistics, times `concentration` and clipped to [-1, 1], the
    label's logit is cos(theta - margin * q) - (margin + margin * q). The buffers `batch_mean` and
    `batch_std` move in training mode only, by `momentum` towards the newest batch; a batch of one image,
    whose norms have no spread, moves the mean alone (the reference's statistics become NaN there).
    """

    batch_mean: Tensor
    batch_std: Tensor

    NORM_RANGE = (1e-3, 100.0)
    EPSILON = 1e-3

    options = (*MarginHead.options, "concentration", "momentum")
    default_margin = 0.4

    def __init__(self, *, concentration: float = 0.333, momentum: float = 0.01, **common: Any) -> None:
        super().__init__(**common)
        self.concentration = concentration
        self.momentum = _share("momentum", momentum)
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def observe(self, target: Tensor, embeddings: Tensor) -> None:
        if self.training:
            norms = self.ranks.gather(self._norms(embeddings))
            _move(self.batch_mean, norms.mean(), self.momentum)
            if len(norms) > 1:
                _move(self.batch_std, norms.std(), self.momentum)

    def positives(self, target: Tensor, embeddings: Tensor) -> Tensor:
        quality: Tensor = (self._norms(embeddings) - self.batch_mean) / (self.batch_std + self.EPSILON)
        quality = (quality * self.concentration).clamp(-1, 1)
        angles = self._inside(target).acos() - self.margin * quality
        target = angles.clamp(self.EPSILON, math.pi - self.EPSILON).cos()
        return target - self.margin * (1 + quality)

    def negatives(self, scores: Tensor, target: Tensor) -> Tensor:
        return self._inside(scores)

    def _inside(self, cosines: Tensor) -> Tensor:
        return cosines.clamp(self.EPSILON - 1, 1 - self.EPSILON)

    def _norms(self, embeddings: Tensor) -> Tensor:
        norms: Tensor = embeddings.detach().norm(dim=1, keepdim=True)
        return norms.clamp(*self.NORM_RANGE)


class SoftmaxHead(Head):
    """A linear layer with bias, for plain cross entropy: no normalisation, no margin."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.bias = nn.Parameter(torch.zeros(self.classes))

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.scores(embeddings, self.kernel, self.bias)

    def scores(self, embeddings: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return embeddings @ kernel if bias is None else torch.addmm(bias, embeddings, kernel)


def _add_angle(cosines: Tensor, margin: float) -> Tensor:
    """cos(theta + margin), with a finite slope everywhere."""
    sines = (1 - cosines.square()).clamp_min(_LEAST_SQUARED_SINE).sqrt()
    return cosines * math.cos(margin) - sines * math.sin(margin)


def _unless_past_pi(cosines: Tensor, shifted: Tensor, margin: float) -> Tensor:
    """`shifted` where theta + margin stays below pi, else the cosine lowered by margin * sin(margin)."""
    return torch.where(cosines > -math.cos(margin), shifted, cosines - margin * math.sin(margin))


def _move(average: Tensor, value: Tensor, weight: float) -> None:
    average.lerp_(value.to(average.dtype).expand_as(average), weight)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise MethodError(f"{name} is {value}; expected 0 to 1")
    return value
