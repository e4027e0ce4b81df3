"""Payload clusters: payloads grouped by the transform that the client drew for them, found from channel energies."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.attacks.learned.payload_maps import PayloadMaps
from ppfr.attacks.learned.training_pairs import TrainingPairs

# queries of one face: so many to see whether payloads repeat at all, and so many at most if they do
_FIRST, _MOST = 24, 288
# log energies that agree to this are of one cluster: rounding is far below, other transforms far above
_ALIKE = 1e-3
_ROUNDS = 4


class PayloadClusters:
    """Assigns payloads to clusters by the energies of their channels (linear discriminant analysis)."""

    def __init__(self, centres: Tensor, precision: Tensor) -> None:
        self._centres, self._precision = centres, precision

    def __len__(self) -> int:
        return len(self._centres)

    def assign(self, maps: Tensor) -> Tensor:
        """The cluster (B,) of each payload, given its maps (B,C,H,W)."""
        if len(self) == 1:
            return torch.zeros(len(maps), dtype=torch.long, device=maps.device)
        return self.nearest(channel_energies(maps))

    def nearest(self, energies: Tensor) -> Tensor:
        """The cluster (B,) of each payload, given the energies (B,C) of its channels."""
        far = energies[:, None] - self._centres
        return torch.einsum("bkc,cd,bkd->bk", far, self._precision, far).argmin(1)

    @classmethod
    def discover(cls, pairs: TrainingPairs, maps: PayloadMaps, generator: torch.Generator) -> PayloadClusters:
        """Query one face again and again; payloads that repeat show how many clusters there are.

        A client whose every payload is new (noise, or draws too many to meet again) has one cluster, and so has one
        that cannot be queried. `fitted` moves the centres from those of one face to those of many.
        """
        if pairs.fresh and maps.channels:
            centres = _distinct_energies(pairs, maps, generator)
            if len(centres) > 1:
                return cls(centres, torch.eye(centres.shape[1]).to(centres))
        return cls(torch.zeros(1, maps.channels).double(), torch.eye(maps.channels).double())

    def fitted(self, energies: Tensor) -> PayloadClusters:
        """The same clusters, their centres and covariance estimated from `channel_energies` (n,C) of many faces."""
        clusters = self
        for _ in range(_ROUNDS if len(self) > 1 else 0):
            clusters = clusters._moved(energies)
        return clusters

    def _moved(self, energies: Tensor) -> PayloadClusters:
        nearest = self.nearest(energies)
        centres = self._centres.clone()
        for cluster in torch.unique(nearest).tolist():
            centres[cluster] = energies[nearest == cluster].mean(0)
        within = energies - centres[nearest]
        covariance = within.T @ within / len(within)
        covariance += 1e-2 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        return PayloadClusters(centres, torch.linalg.inv(covariance))


def _distinct_energies(pairs: TrainingPairs, maps: PayloadMaps, generator: torch.Generator) -> Tensor:
    """The distinct channel energies (K,C) among payloads of one face; the first alone where nothing repeats."""
    found: list[Tensor] = []
    for count in (_FIRST, _MOST - _FIRST):
        for payload in pairs.in_chunks([0] * count, generator):
            for energies in channel_energies(maps.maps(payload)):
                if all(float((energies - known).abs().max()) > _ALIKE for known in found):
                    found.append(energies)
        # always the same, or nothing again
        if len(found) in (1, count):
            return found[0][None]
    # draws that still bring new clusters at the end are too many to learn one by one
    return torch.stack(found) if len(found) <= _MOST // 4 else found[0][None]


def channel_energies(maps: Tensor) -> Tensor:
    """Logarithm of each channel's norm (B,C), less its mean over the channels, so that contrast cancels out."""
    energy: Tensor = torch.linalg.vector_norm(maps, dim=(2, 3)).double().clamp_min(1e-12).log()
    return energy - energy.mean(1, keepdim=True)
