"""Kinds of payload: where a client draws one of a few transforms, repeated queries and energies tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.attacks.learned.payload_maps import PayloadPlanes
from ppfr.attacks.learned.training_pairs import Examples

# queries of one face: so many to see whether payloads repeat at all, and so many at most if they do
_FIRST, _MOST = 24, 288
# logarithms of energies that agree to this are of one kind: rounding is far below, other transforms far above
_ALIKE = 1e-3
_ROUNDS = 4


class Kinds:
    """Tells which kind each payload is of, by the energies of its channels (linear discriminant analysis)."""

    def __init__(self, centres: Tensor, precision: Tensor) -> None:
        self._centres, self._precision = centres, precision

    def __len__(self) -> int:
        return len(self._centres)

    def of(self, planes: Tensor) -> Tensor:
        """The kind (B,) of each payload, given its planes (B,C,H,W)."""
        if len(self) == 1:
            return torch.zeros(len(planes), dtype=torch.long, device=planes.device)
        return self.nearest(channel_energies(planes))

    def nearest(self, energies: Tensor) -> Tensor:
        """The kind (B,) of each payload, given the energies (B,C) of its channels."""
        far = energies[:, None] - self._centres
        return torch.einsum("bkc,cd,bkd->bk", far, self._precision, far).argmin(1)

    @classmethod
    def single(cls, channels: int) -> Kinds:
        """All payloads are of one kind."""
        return cls(torch.zeros(1, channels).double(), torch.eye(channels).double())

    @classmethod
    def discover(cls, examples: Examples, planes: PayloadPlanes, generator: torch.Generator) -> Kinds:
        """Query one face again and again; payloads that repeat show how many kinds there are.

        A client whose every payload is new (noise, or draws too many to meet again) has one kind, and so has one that
        cannot be asked again. `fitted` moves what one face shows to what all faces show.
        """
        if not examples.fresh or not planes.channels:
            return cls.single(planes.channels)
        centres = _distinct(examples, planes, generator)
        if len(centres) == 1:
            return cls.single(planes.channels)
        return cls(centres, torch.eye(centres.shape[1]).to(centres))

    def fitted(self, energies: Tensor) -> Kinds:
        """The same kinds, their centres and spread measured on `channel_energies` (n,C) of many faces."""
        kinds = self
        for _ in range(_ROUNDS if len(self) > 1 else 0):
            kinds = kinds._moved(energies)
        return kinds

    def _moved(self, energies: Tensor) -> Kinds:
        nearest = self.nearest(energies)
        centres = self._centres.clone()
        for kind in torch.unique(nearest).tolist():
            centres[kind] = energies[nearest == kind].mean(0)
        within = energies - centres[nearest]
        covariance = within.T @ within / len(within)
        covariance += 1e-2 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        return Kinds(centres, torch.linalg.inv(covariance))


def _distinct(examples: Examples, planes: PayloadPlanes, generator: torch.Generator) -> Tensor:
    """The energy profiles (K,C) of the kinds that one face gives; a single one where nothing repeats."""
    found: list[Tensor] = []
    for count in (_FIRST, _MOST - _FIRST):
        for payload in examples.in_portions([0] * count, generator):
            for profile in channel_energies(planes.planes(payload)):
                if all(float((profile - known).abs().max()) > _ALIKE for known in found):
                    found.append(profile)
        # always the same, or nothing again
        if len(found) in (1, count):
            return found[0][None]
    # draws that still bring new kinds at the end are too many to learn one by one
    return torch.stack(found) if len(found) <= _MOST // 4 else found[0][None]


def channel_energies(planes: Tensor) -> Tensor:
    """Logarithm of each channel's norm (B,C), less its mean over the channels: blind to the contrast of an image."""
    energy: Tensor = torch.linalg.vector_norm(planes, dim=(2, 3)).double().clamp_min(1e-12).log()
    return energy - energy.mean(1, keepdim=True)
