"""Whose payload is it? A public recogniser taught to read payloads; no pixel is recovered."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.attacks.attacker import Attacker, portions
from ppfr.attacks.base import AttackOptions, Linkage, LinkageAttack, register
from ppfr.attacks.examples import example_threat
from ppfr.attacks.front import Front, Views, learn_front, train
from ppfr.attacks.threat import Has, Knows, ThreatModel
from ppfr.errors import MethodError
from ppfr.methods.base import MethodInfo
from ppfr.methods.payload import Payload
from ppfr.networks import Recogniser
from ppfr.networks.base import reset_weights

_BATCH = 16
# channels inside the correction that reads planes beside the estimated image
_CORRECTION = 8
_RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class IdentityLinkageOptions(AttackOptions):
    """Settings of identity linkage."""

    steps: int = Field(16, description="training steps in the fast budget", ge=0)
    rate: float = Field(3e-4, description="learning rate of AdamW at its peak", gt=0)
    server: bool = Field(True, description="also read the server's own embeddings, as whoever runs the server can")


@register
class IdentityLinkage(LinkageAttack):
    """An encoder from payloads to a public recogniser's embeddings, distilled on public faces (FaceLinkGen, 2026).

    The encoder is the recogniser itself on the best linear estimate of the image (`front`), with a correction that
    reads the payload beside it, all trained on 1 - cosine to the embeddings of the clear images. One who knows the
    server's parameters also maps the server's own embeddings linearly to the recogniser's. How much each of the two
    counts is chosen on public faces that were held out. A recogniser without PyTorch weights is used as it is.
    """

    name = "identity-linkage"
    title = "Identity linkage"
    Options = IdentityLinkageOptions
    options: IdentityLinkageOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        knows = Knows.PARAMETERS if self.options.server else Knows.NOTHING
        return example_threat(holds, knows, frozenset({Has.RECOGNISER}))

    def fit(self, attacker: Attacker) -> None:
        self._front = learn_front(attacker)
        targets = clear_targets(attacker.recogniser, self._front.examples.images)
        self._reader = train_reader(
            attacker,
            self._front,
            targets,
            steps=attacker.budget.steps(self.options.steps),
            rate=self.options.rate,
        )
        self._server = fit_server_map(attacker, self._front, targets) if self.options.server else None
        self._share = self._choose_share(attacker, targets)

    def link(self, attacker: Attacker, payload: Payload) -> Linkage:
        parts = [
            self._embed(attacker, payload.select(rows), self._share)
            for rows in portions(len(payload), payload.schema, _BATCH)
        ]
        server = "not used" if self._server is None else f"{self._share:.0%} of the embedding"
        return Linkage(torch.cat(parts), notes={"learned from": str(self._front), "the server's own embedding": server})

    def _embed(self, attacker: Attacker, payload: Payload, share: float) -> Tensor:
        result = torch.zeros(len(payload), attacker.recogniser.embedding_size, device=attacker.device)
        if share < 1:
            result = result + (1 - share) * F.normalize(self._reader(self._front(payload)))
        if share > 0 and self._server is not None:
            result = result + share * F.normalize(self._server(attacker.embed(payload)))
        return result

    def _choose_share(self, attacker: Attacker, targets: Tensor) -> float:
        """How much the server's embedding shall count: what tells held-out faces apart best."""
        rows = self._front.held_out
        if self._server is None or not rows:
            return 0.0
        examples, generator = self._front.examples, attacker.generator(4)
        seen = [examples.seen(rows[part.start : part.stop], generator) for part in portions(len(rows), examples.schema)]
        reader, server = (torch.cat([self._embed(attacker, one, share) for one in seen]) for share in (0.0, 1.0))
        scores = [_separation((1 - share) * reader + share * server, targets[rows]) for share in _SHARES]
        return _SHARES[max(range(len(scores)), key=scores.__getitem__)]


def clear_targets(recogniser: Recogniser, images: Tensor) -> Tensor:
    """Unit embeddings (n,D) of clear images, mirrored views summed in."""
    return F.normalize(recogniser.embed(images, flip=True)).to(images.device)


def _separation(embeddings: Tensor, targets: Tensor) -> float:
    """How far own targets are more alike than those of others, in deviations of the latter."""
    cosines = F.normalize(embeddings) @ targets.T
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)]
    return float((cosines.diagonal().mean() - others.mean()) / others.std().clamp_min(1e-9))


# --- the recogniser on the estimated image ------------------------------------------------------------------------
class Reader(nn.Module):
    """A public recogniser on the estimated image plus a learned correction; begins as the plain recogniser."""

    def __init__(self, recogniser: Recogniser, front: Front, generator: torch.Generator) -> None:
        super().__init__()
        assert recogniser.backbone is not None
        self._preprocessing = recogniser.preprocessing
        self.trunk = copy.deepcopy(recogniser.backbone)
        last = nn.Conv2d(_CORRECTION, 3, 3, padding=1)
        self.correction = nn.Sequential(nn.Conv2d(front.channels + 3, _CORRECTION, 3, padding=1), nn.PReLU(), last)
        reset_weights(self.correction, generator)
        nn.init.zeros_(last.weight)
        self.numbers = nn.Linear(max(1, front.length), self.trunk.embedding_size)
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, views: Views) -> Tensor:
        """Embeddings (B,D)."""
        image = views.image + self.correction(torch.cat([views.image, views.planes], 1))
        embedding: Tensor = self.trunk(self._preprocessing(image))
        return embedding + self.numbers(views.numbers) if views.numbers.shape[1] else embedding


class FixedReader:
    """A recogniser that cannot be trained here, on the estimated image."""

    def __init__(self, recogniser: Recogniser) -> None:
        self._recogniser = recogniser

    def __call__(self, views: Views) -> Tensor:
        return self._recogniser.embed(views.image).to(views.image.device)


def train_reader(attacker: Attacker, front: Front, targets: Tensor, *, steps: int, rate: float) -> Reader | FixedReader:
    """Distil the recogniser's embeddings of clear images into a reader of payloads."""
    recogniser = attacker.recogniser
    if recogniser.backbone is None:
        return FixedReader(recogniser)
    with torch.random.fork_rng(devices=[]):
        reader = Reader(recogniser, front, attacker.generator(2)).to(attacker.device)
    train(
        reader,
        front,
        attacker,
        lambda views, rows: 1 - F.cosine_similarity(reader(views), targets[rows]).mean(),
        steps=steps,
        rate=rate,
        batch=_BATCH,
    )
    return reader


# --- the server's embeddings --------------------------------------------------------------------------------------
class ServerMap:
    """A linear map from a server's embeddings to the recogniser's."""

    def __init__(self, mean: Tensor, weights: Tensor, offset: Tensor) -> None:
        self._mean, self._weights, self._offset = mean, weights, offset

    def __call__(self, embeddings: Tensor) -> Tensor:
        return (F.normalize(embeddings) - self._mean) @ self._weights + self._offset


def fit_server_map(attacker: Attacker, front: Front, targets: Tensor) -> ServerMap | None:
    """Ridge regression from the server's unit embeddings to the targets; None for a method without a server.

    It shrinks towards the map that leaves embeddings as they are where both have one length, since many servers are
    distilled from public recognisers, else towards none; how much is chosen on the held-out faces.
    """
    try:
        known = _server_embeddings(attacker, front, front.learning)
    except MethodError:
        return None
    rows = front.held_out or front.learning
    judged = _server_embeddings(attacker, front, rows)
    mean, wanted = known.mean(0), targets[front.learning]
    centred = known - mean
    start = torch.eye(known.shape[1]).to(known) if known.shape[1] == targets.shape[1] else None
    offset = wanted.mean(0) if start is None else mean
    left = wanted - offset if start is None else wanted - known
    gram, cross = centred.T @ centred, centred.T @ left
    maps = []
    for ridge in _RIDGES:
        damping = ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        weights = torch.linalg.solve(gram + damping, cross)
        maps.append(ServerMap(mean, weights if start is None else start + weights, offset))
    return max(maps, key=lambda one: _separation(one(judged), targets[rows]))


def _server_embeddings(attacker: Attacker, front: Front, rows: list[int]) -> Tensor:
    generator = attacker.generator(5)
    parts = [
        attacker.embed(front.examples.seen(rows[part.start : part.stop], generator))
        for part in portions(len(rows), front.examples.schema, _BATCH)
    ]
    return F.normalize(torch.cat(parts))
