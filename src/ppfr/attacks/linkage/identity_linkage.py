"""Identity linkage: a public recogniser distilled to payloads, which links them to photos without recovering images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Linkage, register
from ppfr.attacks.budget import row_chunks
from ppfr.attacks.learned.features import FeatureExtractor, Features, train
from ppfr.attacks.learned.ridge import fit_map, unit
from ppfr.attacks.threat import Has, Knows, ThreatModel, training_threat
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser
from ppfr.networks.base import reset_weights
from ppfr.util.errors import MethodError

_BATCH = 16
# channels inside the correction of the estimated image
_CORRECTION = 8
# candidate weights of the server's embeddings beside the reader's, and of the mirrored payload's among them
_SHARES, _MIRRORED = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5)


class IdentityLinkageOptions(AttackOptions):
    """Settings of identity linkage."""

    steps: int = Field(16, description="training steps in the fast budget", ge=0)
    rate: float = Field(3e-4, description="learning rate of AdamW at its peak", gt=0)
    server: bool = Field(True, description="also use the server's own embeddings, as the operator of the server can")


@register
class IdentityLinkage(Attack[Linkage]):
    """An encoder from payloads to a public recogniser's embeddings, distilled on public faces (FaceLinkGen, 2026).

    The encoder is the recogniser on the linear estimate of the image (`FeatureExtractor`) plus a learned correction
    from the payload maps, trained on 1 - cosine to the embeddings of the clear images. An attacker who knows the
    server's parameters also maps the server's own embeddings, of the payload and of its mirror image, linearly to the
    recogniser's. The weights of these are chosen on held-out public faces. A recogniser without PyTorch weights is used
    as it is.
    """

    name = "identity-linkage"
    title = "Identity linkage"
    Options = IdentityLinkageOptions
    options: IdentityLinkageOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        knows = Knows.PARAMETERS if self.options.server else Knows.NOTHING
        return training_threat(holds, knows, frozenset({Has.RECOGNISER}))

    def fit(self, attacker: Attacker) -> None:
        self._features = attacker.features()
        targets = clear_targets(attacker.recogniser, self._features.pairs.images)
        steps = attacker.budget.steps(self.options.steps)
        reader = train_reader(attacker, self._features, targets, steps=steps, rate=self.options.rate)
        self._sources: list[Callable[[Payload], Tensor]] = [lambda payload: reader(self._features(payload))]
        self._server = "not used"
        if self.options.server:
            self._add_server(attacker, targets)
        self._mixture = self._choose_mixture(attacker, targets)

    def run(self, attacker: Attacker, payload: Payload) -> Linkage:
        parts = [payload.select(rows) for rows in row_chunks(len(payload), payload.schema, _BATCH)]
        embeddings = torch.cat([sum_of(self._mixture, self._embed(part)) for part in parts])
        server = f"{sum(self._mixture[1:]):.0%} of the embedding" if len(self._sources) > 1 else self._server
        return Linkage(embeddings, notes={"learned from": str(self._features), "the server's own embedding": server})

    def _add_server(self, attacker: Attacker, targets: Tensor) -> None:
        """Add the server's embeddings of a payload and of its mirror image to the sources, if there is a server."""
        rows = self._features.learning
        payloads = self._features.pairs.in_chunks(rows, attacker.generator(5))
        try:
            known = [attacker.embed(payload) for payload in payloads]
        except MethodError as error:
            self._server = f"none: {error}"
            return
        mapped = fit_map(unit(torch.cat(known)), targets[rows])
        self._sources.append(lambda payload: mapped(unit(attacker.embed(payload))))
        self._sources.append(lambda payload: mapped(unit(attacker.embed(mirrored(payload)))))

    @torch.no_grad()
    def _embed(self, payload: Payload) -> list[Tensor]:
        """Unit embeddings (B,D), one tensor for each source."""
        return [F.normalize(source(payload)) for source in self._sources]

    def _choose_mixture(self, attacker: Attacker, targets: Tensor) -> tuple[float, ...]:
        """The weights of the sources that separate held-out faces best."""
        rows = self._features.held_out
        if len(self._sources) == 1 or not rows:
            return (1.0, *[0.0 for _ in self._sources[1:]])
        payloads = self._features.pairs.in_chunks(rows, attacker.generator(4))
        found = [torch.cat(parts) for parts in zip(*map(self._embed, payloads), strict=True)]
        mixtures = [(1 - share, share * (1 - other), share * other) for share in _SHARES for other in _MIRRORED]
        return max(mixtures, key=lambda weights: separation(sum_of(weights, found), targets[rows]))


def sum_of(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """The weighted sum of tensors of one shape."""
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def mirrored(payload: Payload) -> Payload:
    """A payload with its maps, tensors of two axes or more, flipped from left to right."""
    specs = payload.schema.tensors
    flipped = {name: part.flip(-1) if len(specs[name].shape) > 1 else part for name, part in payload.tensors.items()}
    return Payload(payload.schema, flipped)


def clear_targets(recogniser: Recogniser, images: Tensor) -> Tensor:
    """Unit embeddings (n,D) of clear images, those of the mirrored images summed in."""
    return F.normalize(recogniser.embed(images, flip=True)).to(images.device)


def separation(embeddings: Tensor, targets: Tensor) -> float:
    """Mean cosine to own targets less that to others', in standard deviations of the latter (d')."""
    cosines = F.normalize(embeddings) @ targets.T
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)]
    return float((cosines.diagonal().mean() - others.mean()) / others.std().clamp_min(1e-9))


# --- the recogniser on the estimated image ------------------------------------------------------------------------
class Reader(nn.Module):
    """A recogniser on the estimated image plus a learned correction; before training it is the plain recogniser."""

    def __init__(self, recogniser: Recogniser, features: FeatureExtractor, generator: torch.Generator) -> None:
        super().__init__()
        assert recogniser.backbone is not None
        self._preprocessing = recogniser.preprocessing
        self.trunk = copy.deepcopy(recogniser.backbone)
        last = nn.Conv2d(_CORRECTION, 3, 3, padding=1)
        self.correction = nn.Sequential(nn.Conv2d(features.channels + 3, _CORRECTION, 3, padding=1), nn.PReLU(), last)
        reset_weights(self.correction, generator)
        nn.init.zeros_(last.weight)
        self.numbers = nn.Linear(max(1, features.length), self.trunk.embedding_size)
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, features: Features, *, flip: bool = False) -> Tensor:
        """Embeddings (B,D); `flip` adds those of the mirrored images."""
        image = features.image + self.correction(torch.cat([features.image, features.maps], 1))
        embedding: Tensor = self.trunk(self._preprocessing(image))
        if flip:
            embedding = embedding + self.trunk(self._preprocessing(image.flip(3)))
        return embedding + self.numbers(features.vector) if features.vector.shape[1] else embedding


def train_reader(
    attacker: Attacker, features: FeatureExtractor, targets: Tensor, *, steps: int, rate: float
) -> Callable[[Features], Tensor]:
    """Distil the recogniser's embeddings of clear images into a reader of payloads, mirrored images summed in.

    A recogniser without trainable weights is applied to the estimated image as it is.
    """
    recogniser = attacker.recogniser
    if recogniser.backbone is None:
        return lambda found: recogniser.embed(found.image, flip=True).to(found.image.device)
    with torch.random.fork_rng(devices=[]):
        reader = Reader(recogniser, features, attacker.generator(2)).to(attacker.device)
    train(
        reader,
        features,
        lambda found, rows: 1 - F.cosine_similarity(reader(found), targets[rows]).mean(),
        steps=steps,
        rate=rate,
        batch=_BATCH,
        generator=attacker.generator(3),
        progress=attacker.progress,
    )
    return partial(reader, flip=True)
