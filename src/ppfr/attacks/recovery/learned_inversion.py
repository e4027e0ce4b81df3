"""Learned inversion: a U-Net from payloads to images, trained on pairs; the attack that the methods' papers report."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Recovery, register
from ppfr.attacks.budget import row_chunks
from ppfr.attacks.learned.features import FeatureExtractor, Features, train
from ppfr.attacks.threat import Has, ThreatModel, training_threat
from ppfr.evaluation.metrics.similarity import WINDOW, ssim
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.networks.base import reset_weights
from ppfr.networks.unet import REDUCTION, build_unet

_BATCH = 16
# a vector enters as so many small maps, which are enlarged to the image grid
_LIFTED, _COARSE = 8, 7


class LearnedInversionOptions(AttackOptions):
    """Settings of learned inversion."""

    steps: int = Field(24, description="training steps in the fast budget", ge=0)
    width: float = Field(0.125, description="width of the U-Net in the fast budget; 1 is 64 to 1024 channels", gt=0)
    rate: float = Field(2e-3, description="learning rate of AdamW at its peak", gt=0)
    structure: float = Field(0.5, description="weight of 1 - SSIM beside the absolute error", ge=0)


@register
class LearnedInversion(Attack[Recovery]):
    """A U-Net from the payload to the image, trained on pairs of both.

    It learns a residual on the linear estimate of the image (`FeatureExtractor`), which is its input together with the
    payload maps. The loss is the mean absolute error, with 1 - SSIM. Ours departs from the papers' U-Nets by starting
    from the linear estimate; with their budgets of many epochs that matters little.
    """

    name = "learned-inversion"
    title = "Learned inversion"
    Options = LearnedInversionOptions
    options: LearnedInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return training_threat(holds)

    def fit(self, attacker: Attacker) -> None:
        self._features = attacker.features()
        width = self.options.width * min(8.0, max(1.0, attacker.budget.effort)) ** 0.5
        with torch.random.fork_rng(devices=[]):
            network = Corrector(self._features, width, attacker.generator(2)).to(attacker.device)
        clear = self._features.pairs.images
        train(
            network,
            self._features,
            lambda features, rows: self._loss(network(features), clear[rows]),
            steps=attacker.budget.steps(self.options.steps),
            rate=self.options.rate,
            batch=_BATCH,
            generator=attacker.generator(3),
            progress=attacker.progress,
        )
        self._network = network

    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        with torch.no_grad():
            images = [
                self._network(self._features(payload.select(rows))) / 2 + 0.5
                for rows in row_chunks(len(payload), payload.schema, _BATCH)
            ]
        return Recovery(torch.cat(images).clamp(0, 1), notes={"learned from": str(self._features)})

    def _loss(self, made: Tensor, clear: Tensor) -> Tensor:
        loss = (made - clear).abs().mean()
        if min(made.shape[2:]) < WINDOW or not self.options.structure:
            return loss
        # SSIM is defined on [0,1]; beyond that range only the absolute error counts
        alike = ssim((made / 2 + 0.5).clamp(0, 1), (clear / 2 + 0.5).clamp(0, 1)).mean()
        return loss + self.options.structure * (1 - alike)


class Corrector(nn.Module):
    """The linear estimate of the image plus a residual by a U-Net; before training it is the linear estimate."""

    def __init__(self, features: FeatureExtractor, width: float, generator: torch.Generator) -> None:
        super().__init__()
        lifted = _LIFTED if features.length else 0
        self.unet = build_unet(
            in_channels=3 + features.channels + lifted, out_channels=3, width=width, generator=generator
        )
        last = self.unet.get_submodule("right_conv_5")
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.lift = nn.Linear(features.length, lifted * _COARSE**2) if lifted else None
        if self.lift is not None:
            reset_weights(self.lift, generator)

    def forward(self, features: Features) -> Tensor:
        """Images (B,3,H,W), about [-1,1]."""
        height, width = features.image.shape[2:]
        parts = [features.image, features.maps]
        if self.lift is not None:
            maps = self.lift(features.vector).unflatten(1, (_LIFTED, _COARSE, _COARSE))
            parts.append(F.interpolate(maps, (height, width), mode="bilinear"))
        bottom, right = -height % REDUCTION, -width % REDUCTION
        made: Tensor = self.unet(F.pad(torch.cat(parts, 1), (0, right, 0, bottom), mode="replicate"))
        return features.image + made[..., :height, :width]
