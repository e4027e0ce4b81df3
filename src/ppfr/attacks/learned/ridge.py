"""Ridge regression, with its regularisation strength chosen on held-out people."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.attacks.budget import evenly_spaced

# shares of the inputs' mean variance; the last leaves almost only the start
STRENGTHS = (1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 1e3)
_HELD_OUT = 8
# columns that the strength is chosen by
_COLUMNS = 1024
_TINY = 1e-12


@dataclass(frozen=True)
class LinearMap:
    """`(x - mean) @ weights + offset`, from (B,D) to (B,E)."""

    mean: Tensor
    weights: Tensor
    offset: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Map `values` (B,D) to (B,E)."""
        found: Tensor = (values - self.mean) @ self.weights + self.offset
        return found


def fit_map(known: Tensor, wanted: Tensor) -> LinearMap:
    """Ridge regression from `known` (n,D) to `wanted` (n,E), both float.

    The weights shrink towards zero or, where D = E, towards the identity, because one recogniser is often distilled
    from the other. Target and strength of the shrinkage minimise the squared error on the last eighth of the rows after
    fitting to the others; faces are sorted by person, so those are mostly other people.
    """
    split = len(known) - max(1, len(known) // _HELD_OUT)
    starts = [False, True] if known.shape[1] == wanted.shape[1] else [False]
    if not split:
        return _solve(known, wanted, STRENGTHS[-1], starts[-1])
    some = wanted[:, evenly_spaced(wanted.shape[1], _COLUMNS)]

    def error(choice: tuple[float, bool]) -> float:
        learned = _solve(known[:split], some[:split], *choice)
        return float((learned(known[split:]) - some[split:]).double().square().mean())

    strength, start = min(((strength, start) for start in starts for strength in STRENGTHS), key=error)
    return _solve(known, wanted, strength, start)


def _solve(known: Tensor, wanted: Tensor, strength: float, start: bool) -> LinearMap:
    """The map for one strength; its weights shrink towards the identity if `start`, else towards zero."""
    mean, offset = known.mean(0), wanted.mean(0)
    centred = known - mean
    gram = (centred.T @ centred).double()
    damping = (strength * gram.diagonal().mean() + _TINY) * torch.eye(len(gram)).to(gram)
    cross = (centred.T @ (wanted - offset)).double()
    weights = torch.linalg.solve(gram + damping, cross + damping if start else cross)
    return LinearMap(mean, weights.to(wanted), offset)


def unit(templates: Tensor) -> Tensor:
    """Templates (B,D) as float vectors of length 1: servers compare by cosine."""
    return F.normalize(templates.float())
