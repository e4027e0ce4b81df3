"""Faces from payloads by a network trained on examples: the attack that the methods' papers report."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.attacks.attacker import Attacker, portions
from ppfr.attacks.base import AttackOptions, Recovery, RecoveryAttack, register
from ppfr.attacks.learned.features import Front, Views, learn_front, train
from ppfr.attacks.learned.training_pairs import example_threat
from ppfr.attacks.threat import Has, ThreatModel
from ppfr.evaluation.metrics.similarity import WINDOW, ssim
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.networks.base import reset_weights
from ppfr.networks.unet import REDUCTION, build_unet

_BATCH = 16
# numbers without a place enter as so many small maps, which are enlarged to the image grid
_LIFTED, _COARSE = 8, 7


class LearnedInversionOptions(AttackOptions):
    """Settings of learned inversion."""

    steps: int = Field(24, description="training steps in the fast budget", ge=0)
    width: float = Field(0.125, description="width of the U-Net in the fast budget; 1 is 64 to 1024 channels", gt=0)
    rate: float = Field(2e-3, description="learning rate of AdamW at its peak", gt=0)
    structure: float = Field(0.5, description="weight of 1 - SSIM beside the absolute error", ge=0)


@register
class LearnedInversion(RecoveryAttack):
    """A U-Net from the payload to the image, trained on examples.

    It corrects the best linear estimate of the image (`front`), which it sees together with the payload's planes, so
    that it starts from the closed-form solution instead of from nothing. The loss is the mean absolute error, with
    1 - SSIM. Ours departs from the papers' U-Nets by that start: with their budgets of many epochs it matters little.
    """

    name = "learned-inversion"
    title = "Learned inversion"
    Options = LearnedInversionOptions
    options: LearnedInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return example_threat(holds)

    def fit(self, attacker: Attacker) -> None:
        self._front = learn_front(attacker)
        width = self.options.width * min(8.0, max(1.0, attacker.budget.effort)) ** 0.5
        with torch.random.fork_rng(devices=[]):
            network = Corrector(self._front, width, attacker.generator(2)).to(attacker.device)
        clear = self._front.examples.images
        train(
            network,
            self._front,
            attacker,
            lambda views, rows: self._loss(network(views), clear[rows]),
            steps=attacker.budget.steps(self.options.steps),
            rate=self.options.rate,
            batch=_BATCH,
        )
        self._network = network

    def recover(self, attacker: Attacker, payload: Payload) -> Recovery:
        with torch.no_grad():
            images = [
                self._network(self._front(payload.select(rows))) / 2 + 0.5
                for rows in portions(len(payload), payload.schema, _BATCH)
            ]
        return Recovery(torch.cat(images).clamp(0, 1), notes={"learned from": str(self._front)})

    def _loss(self, made: Tensor, clear: Tensor) -> Tensor:
        loss = (made - clear).abs().mean()
        if min(made.shape[2:]) < WINDOW or not self.options.structure:
            return loss
        # SSIM is of [0,1]; beyond that range the absolute error alone pulls back
        alike = ssim((made / 2 + 0.5).clamp(0, 1), (clear / 2 + 0.5).clamp(0, 1)).mean()
        return loss + self.options.structure * (1 - alike)


class Corrector(nn.Module):
    """The estimated image plus what a U-Net makes of it and the payload's planes; begins as the estimate."""

    def __init__(self, front: Front, width: float, generator: torch.Generator) -> None:
        super().__init__()
        lifted = _LIFTED if front.length else 0
        self.unet = build_unet(
            in_channels=3 + front.channels + lifted, out_channels=3, width=width, generator=generator
        )
        last = self.unet.get_submodule("right_conv_5")
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.lift = nn.Linear(front.length, lifted * _COARSE**2) if lifted else None
        if self.lift is not None:
            reset_weights(self.lift, generator)

    def forward(self, views: Views) -> Tensor:
        """Images (B,3,H,W), about [-1,1]."""
        height, width = views.image.shape[2:]
        parts = [views.image, views.planes]
        if self.lift is not None:
            maps = self.lift(views.numbers).unflatten(1, (_LIFTED, _COARSE, _COARSE))
            parts.append(F.interpolate(maps, (height, width), mode="bilinear"))
        bottom, right = -height % REDUCTION, -width % REDUCTION
        made: Tensor = self.unet(F.pad(torch.cat(parts, 1), (0, right, 0, bottom), mode="replicate"))
        return views.image + made[..., :height, :width]
