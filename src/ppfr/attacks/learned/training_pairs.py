"""What a learning attack learns from: payloads together with the images behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ppfr.attacks.attacker import Attacker, portions
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel
from ppfr.methods.common.payload import Payload


def example_threat(
    holds: frozenset[Has], knows: Knows = Knows.NOTHING, also: frozenset[Has] = frozenset()
) -> ThreatModel:
    """Who learns from examples: one with pairs if it was handed some, else with faces and the client."""
    if Has.PAIRS in holds:
        return ThreatModel(Sees.PAYLOAD, knows, also | {Has.PAIRS}, pairs=1)
    return ThreatModel(Sees.PAYLOAD, knows, also | {Has.FACES, Has.QUERIES})


class Examples:
    """Payloads with the images (n,3,H,W) in [-1,1] behind them.

    They are the pairs that the attacker was handed, or public faces that it sends through the client itself: then every
    look at a face is a fresh draw of the client.
    """

    def __init__(self, attacker: Attacker) -> None:
        self._attacker = attacker
        self._pairs = attacker.pairs if Has.PAIRS in attacker.holds else None
        images = attacker.faces.images if self._pairs is None else self._pairs.images
        self.images: Tensor = images.to(attacker.device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fresh(self) -> bool:
        """Whether the client can be asked again."""
        return self._pairs is None

    def seen(self, rows: Sequence[int], generator: torch.Generator) -> Payload:
        """What the attacker sees of the images in `rows`."""
        if self._pairs is not None:
            return self._pairs.payload.select(rows).to(self._attacker.device)
        return self._attacker.query(self.images[list(rows)], generator)

    def in_portions(self, rows: Sequence[int], generator: torch.Generator) -> Iterator[Payload]:
        """What the attacker sees of many images, a few at a time."""
        for part in portions(len(rows), self._attacker.schema):
            yield self.seen(rows[part.start : part.stop], generator)

    def __str__(self) -> str:
        return f"{len(self)} {'public faces sent through the client' if self.fresh else 'payload/image pairs'}"
