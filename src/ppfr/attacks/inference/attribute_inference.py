"""Attribute inference: a linear classifier of a soft attribute on payloads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Inference, register
from ppfr.attacks.inference.attributes import ATTRIBUTES, DARK_HAIR
from ppfr.attacks.learned.features import Features
from ppfr.attacks.learned.ridge import fit_map
from ppfr.attacks.threat import Has, ThreatModel, training_threat
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError

# side of the small image that is classified; offset of brightness under the logarithm, above the noise
_SIDE, _BLACK = 16, 0.05


class AttributeInferenceOptions(AttackOptions):
    """Settings of attribute inference."""

    attribute: str = Field(
        DARK_HAIR,
        description=f"{' or '.join(map(repr, ATTRIBUTES))}, measured on the photos, or a name among the labels of "
        "the public faces",
    )


@register
class AttributeInference(Attack[Inference]):
    """A linear classifier on the linear estimate of the image, reduced in size, with its logarithm and mirror image.

    The logarithm makes ratios of brightness linear. Ridge regression on the classes gives their probabilities; the
    class with the highest ratio of its probability to its share in the training pairs is chosen, so that rare classes
    count equally. It takes no training steps, so that budgets differ in faces only.
    """

    name = "attribute-inference"
    title = "Attribute inference"
    finds_people = False
    Options = AttributeInferenceOptions
    options: AttributeInferenceOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return training_threat(holds)

    @torch.no_grad()
    def fit(self, attacker: Attacker) -> None:
        self._features = attacker.features()
        pairs = self._features.pairs
        labels = self._labels(attacker, pairs.images)
        self._classes, known = torch.unique(labels, return_inverse=True)
        if len(self._classes) < 2:
            raise AttackError(
                f"all {len(labels)} examples are of class {labels[0].item()} of {self.options.attribute!r}; "
                "expected several classes"
            )
        payloads = pairs.in_chunks(range(len(pairs)), attacker.generator(6))
        inputs = [_inputs(self._features(payload)) for payload in payloads]
        wanted = F.one_hot(known).float().to(attacker.device)
        # an image and its mirror image stay side by side, so that both are held out or neither
        known_inputs = torch.stack([torch.cat(side) for side in zip(*inputs, strict=True)], 1).flatten(0, 1)
        self._map = fit_map(known_inputs, wanted.repeat_interleave(2, 0))
        self._shares = wanted.mean(0)

    def _labels(self, attacker: Attacker, images: Tensor) -> Tensor:
        name = self.options.attribute
        given = attacker.faces.labels if Has.FACES in attacker.threat.has else None
        if given is not None and name in given:
            return given[name].long()
        if name not in ATTRIBUTES:
            raise AttackError(
                f"the public faces have no labels {name!r}, only {sorted(given or {})}; give some as "
                f"PublicFaces(images, labels=...), or take {' or '.join(map(repr, ATTRIBUTES))}, which needs none"
            )
        return ATTRIBUTES[name](images)

    @torch.no_grad()
    def run(self, attacker: Attacker, payload: Payload) -> Inference:
        one, mirrored = _inputs(self._features(payload))
        risen = (self._map(one) + self._map(mirrored)) / self._shares
        classes = self._classes.to(risen.device)[risen.argmax(1)]
        name = self.options.attribute
        return Inference(classes, name, ATTRIBUTES.get(name), notes={"learned from": str(self._features)})


def _inputs(features: Features) -> tuple[Tensor, Tensor]:
    """Inputs (B,K) of the classifier for an image and for its mirror image."""
    small = F.interpolate(features.image, (_SIDE, _SIDE), mode="area")
    both = []
    for image in (small, small.flip(-1)):
        level = (image.clamp(-1, 1) / 2 + 0.5 + _BLACK).log()
        both.append(torch.cat([image.flatten(1), level.flatten(1), features.vector], 1))
    return both[0], both[1]
