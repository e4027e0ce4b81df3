"""A soft attribute read off payloads: what leaks of a person whom nobody can name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import AttackOptions, Inference, InferenceAttack, register
from ppfr.attacks.inference.attributes import ATTRIBUTES, DARK_HAIR
from ppfr.attacks.learned.features import Views, learn_front
from ppfr.attacks.learned.ridge import fit_map
from ppfr.attacks.learned.training_pairs import example_threat
from ppfr.attacks.threat import Has, ThreatModel
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError

# side of the small image that is classified; at this level a logarithm of brightness sees no noise
_SIDE, _BLACK = 16, 0.05


class AttributeInferenceOptions(AttackOptions):
    """Settings of attribute inference."""

    attribute: str = Field(
        DARK_HAIR,
        description=f"{' or '.join(map(repr, ATTRIBUTES))}, measured on the photos, or a name among the labels of "
        "the public faces",
    )


@register
class AttributeInference(InferenceAttack):
    """A linear classifier on the best linear estimate of the image, small, with its logarithm, and its mirror image.

    The logarithm makes ratios of brightness linear. Ridge regression on the classes gives their probabilities; the
    class is chosen whose probability rose most over its share among the examples, so that rare classes count as much.
    Without training there are no steps, and every budget does the same with the faces it has.
    """

    name = "attribute-inference"
    title = "Attribute inference"
    finds_people = False
    Options = AttributeInferenceOptions
    options: AttributeInferenceOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return example_threat(holds)

    @torch.no_grad()
    def fit(self, attacker: Attacker) -> None:
        self._front = learn_front(attacker)
        examples = self._front.examples
        labels = self._labels(attacker, examples.images)
        self._classes, known = torch.unique(labels, return_inverse=True)
        if len(self._classes) < 2:
            raise AttackError(
                f"all {len(labels)} examples are of class {labels[0].item()} of {self.options.attribute!r}; "
                "there is nothing to tell apart"
            )
        rows, generator = range(len(examples)), attacker.generator(6)
        seen = [_features(self._front(payload)) for payload in examples.in_portions(rows, generator)]
        wanted = F.one_hot(known).float().to(attacker.device)
        # an image and its mirror image stay side by side, so that both are kept aside or neither
        pairs = torch.stack([torch.cat(side) for side in zip(*seen, strict=True)], 1).flatten(0, 1)
        self._map = fit_map(pairs, wanted.repeat_interleave(2, 0))
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
    def infer(self, attacker: Attacker, payload: Payload) -> Inference:
        one, mirrored = _features(self._front(payload))
        risen = (self._map(one) + self._map(mirrored)) / self._shares
        classes = self._classes.to(risen.device)[risen.argmax(1)]
        name = self.options.attribute
        return Inference(classes, name, ATTRIBUTES.get(name), notes={"learned from": str(self._front)})


def _features(views: Views) -> tuple[Tensor, Tensor]:
    """Features (B,K) of what is seen of an image, and of its mirror image."""
    small = F.interpolate(views.image, (_SIDE, _SIDE), mode="area")
    both = []
    for image in (small, small.flip(-1)):
        level = (image.clamp(-1, 1) / 2 + 0.5 + _BLACK).log()
        both.append(torch.cat([image.flatten(1), level.flatten(1), views.numbers], 1))
    return both[0], both[1]
