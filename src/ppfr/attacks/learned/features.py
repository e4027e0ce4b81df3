"""Feature extraction from any payload: normalised payload maps, a vector, and a linear estimate of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppfr.attacks.budget import Progress, evenly_spaced
from ppfr.attacks.learned.payload_clusters import PayloadClusters, channel_energies
from ppfr.attacks.learned.payload_maps import PayloadMaps
from ppfr.attacks.learned.training_pairs import TrainingPairs
from ppfr.attacks.learned.wiener_filter import WienerFilter
from ppfr.methods.common.payload import Payload

# payload maps held at once to learn from, in half precision
_BYTES = 1 << 28
# payloads that determine the maps' scales, and payloads of each cluster
_SCALE_SAMPLE, _PER_CLUSTER = 16, 48
# one in so many training pairs is held out for model selection
_HELD_OUT = 8


class Features(NamedTuple):
    """A payload as networks take it: the linear estimate of the image, normalised payload maps, and a vector.

    `image` (B,3,H,W) in [-1,1], `maps` (B,C,H,W), `vector` (B,V).
    """

    image: Tensor
    maps: Tensor
    vector: Tensor


@dataclass(frozen=True)
class _Sample:
    """Payloads to learn from: maps in half precision, vectors, clusters (n,), and their training pairs (n,)."""

    maps: Tensor
    vectors: Tensor
    clusters: Tensor
    rows: Tensor


class FeatureExtractor:
    """Turns payloads into `Features`; fitted to training pairs in closed form, without gradient descent.

    `learning` and `held_out` are the training pairs that it is fitted to and those kept for model selection; `channels`
    and `length` are the numbers of payload maps and of values in the vector.
    """

    @torch.no_grad()
    def __init__(
        self, pairs: TrainingPairs, size: tuple[int, int], generator: torch.Generator, progress: Progress
    ) -> None:
        self.pairs = pairs
        # sets of faces are sorted by person, so the last ones are of others than the first
        split = len(pairs) - len(pairs) // _HELD_OUT
        self.learning, self.held_out = list(range(split)), list(range(split, len(pairs)))
        sample = pairs.payloads(evenly_spaced(split, _SCALE_SAMPLE), generator)
        self._maps = PayloadMaps(sample, size)
        self.channels, self.length = self._maps.channels, self._maps.length
        clusters = PayloadClusters.discover(pairs, self._maps, generator)
        rows = self._sample_rows(len(clusters))
        maps = torch.empty((len(rows), self.channels, *size), dtype=torch.float16, device=pairs.images.device)
        vectors, energies = [], []
        done = 0
        for payload in pairs.in_chunks(rows, generator):
            progress(done, len(rows))
            found = self._maps.maps(payload)
            maps[done : done + len(found)] = found
            done += len(found)
            vectors.append(self._maps.vectors(payload))
            energies.append(channel_energies(found))
        energy = torch.cat(energies)
        self._clusters = clusters.fitted(energy)
        index = torch.tensor(rows, device=energy.device)
        self._sample = _Sample(maps, torch.cat(vectors), self._clusters.nearest(energy), index)
        self._wiener = WienerFilter(maps, self._sample.clusters, len(clusters), pairs.images[index])

    def _sample_rows(self, clusters: int) -> list[int]:
        """The training pairs to learn from, some repeatedly where there are many clusters, as far as memory allows."""
        each = max(1, self.channels * self._maps.size[0] * self._maps.size[1] * 2)
        count = len(self.learning)
        most = min(max(1, _BYTES // each), max(count, _PER_CLUSTER * clusters))
        if most <= count or not self.pairs.fresh:
            return evenly_spaced(count, most)
        return [row % count for row in range(most)]

    @torch.no_grad()
    def __call__(self, payload: Payload) -> Features:
        """Features of a payload."""
        maps = self._maps.maps(payload)
        return self._features(maps, self._clusters.assign(maps), self._maps.vectors(payload))

    def _features(self, maps: Tensor, clusters: Tensor, vectors: Tensor) -> Features:
        normalised = self._wiener.normalised(maps, clusters)
        return Features(self._wiener(normalised, clusters), normalised, vectors)

    @torch.no_grad()
    def batches(self, steps: int, batch: int, generator: torch.Generator) -> Iterator[tuple[Features, Tensor]]:
        """`steps` batches to train on: features, and the training pairs (B,) they are of.

        The first epoch takes the sample that the extractor was fitted to, in random order; later ones are new payloads.
        """
        order: list[int] = []
        epoch = -1
        for _ in range(steps):
            if len(order) < batch:
                epoch += 1
                count = len(self._sample.rows) if epoch == 0 else len(self.learning)
                order = torch.randperm(count, generator=generator).tolist()
            chosen, order = order[:batch], order[batch:]
            if epoch == 0:
                held = self._sample
                features = self._features(held.maps[chosen].float(), held.clusters[chosen], held.vectors[chosen])
                yield features, held.rows[chosen]
            else:
                yield self(self.pairs.payloads(chosen, generator)), torch.tensor(chosen).to(self._sample.rows)

    def __str__(self) -> str:
        return (
            f"{self.pairs}; {self.channels} payload maps and {self.length} numbers; "
            f"{len(self._clusters)} payload clusters"
        )


class FeatureCache:
    """Feature extractors that several attacks on the same targets share; the last one of each target is kept.

    It holds on to the targets, so it belongs to whatever runs those attacks and goes with it.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[Any, ...], Hashable, FeatureExtractor]] = {}

    def get(
        self, sources: tuple[Any, ...], settings: Hashable, fit: Callable[[], FeatureExtractor]
    ) -> FeatureExtractor:
        """The extractor fitted to the same objects (the first is the target) with equal settings, or a new one."""
        known = self._kept.get(id(sources[0]))
        if known is None or known[1] != settings or any(a is not b for a, b in zip(known[0], sources, strict=True)):
            known = self._kept[id(sources[0])] = sources, settings, fit()
        return known[2]


def train(
    network: nn.Module,
    features: FeatureExtractor,
    loss: Callable[[Features, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    batch: int,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Train a network on features of training pairs, then freeze it.

    `loss` is that of a batch of features and the training pairs (B,) they are of; AdamW's learning rate rises to `rate`
    and falls again as half a sine wave. Norms keep their statistics, because batches are small.
    """
    network.eval()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    for step, (found, rows) in enumerate(features.batches(steps, batch, generator)):
        for group in optimiser.param_groups:
            group["lr"] = rate * math.sin(math.pi * (step + 0.5) / steps)
        with torch.enable_grad():
            value = loss(found, rows)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        progress(step + 1, steps)
    network.requires_grad_(False)
