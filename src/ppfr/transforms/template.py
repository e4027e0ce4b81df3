"""Template protection: keyed rotation and dropout of embeddings before they are stored or compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.util.errors import ShapeError

# below this angle the arc is a line, up to rounding; as close to the opposite, there is no one arc
_SMALLEST_SINE = 1e-4


@dataclass(frozen=True)
class TemplateKey:
    """A direction of noise (D,), of unit length, and which dimensions (D,), bool, are kept.

    Templates under one key can be compared; a new key revokes them all.
    """

    noise: Tensor
    kept: Tensor

    @classmethod
    def draw(cls, size: int, generator: torch.Generator, *, groups: int = 8, dropped: float = 0.25) -> TemplateKey:
        """Draw a key for embeddings of `size` dimensions, cut at random into `groups` that lose a share each.

        Every group loses `dropped` of its dimensions, rounded down, so that no part of the embedding is spared. Raises
        ShapeError for more groups than dimensions, and for a share outside 0 to below 1.
        """
        order = torch.randperm(size, generator=generator)
        return cls.of(torch.randn(size, generator=generator), order, groups=groups, dropped=dropped)

    @classmethod
    def of(cls, noise: Tensor, order: Tensor, *, groups: int = 8, dropped: float = 0.25) -> TemplateKey:
        """The key with a direction of noise (D,) and an order (D,) of dimensions, which is cut into groups.

        Raises as `draw`.
        """
        size = len(order)
        if not 1 <= groups <= size:
            raise ShapeError(f"groups is {groups}; expected 1..{size}, the dimensions of an embedding")
        if not 0 <= dropped < 1:
            raise ShapeError(f"dropped is {dropped}; expected a share from 0 to below 1")
        kept = torch.ones(size, dtype=torch.bool)
        for group in order.tensor_split(groups):
            kept[group[: int(dropped * len(group))]] = False
        return cls(F.normalize(noise, dim=0), kept)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Unit vectors (B,D) that lie `share` of the way from `start` (B,D) to `end` (D,) along the great circle.

    Both must have unit length. Source: Shoemake 1985. Raises ShapeError.
    """
    if start.ndim != 2 or end.shape != start.shape[1:] or not 0 <= share <= 1:
        raise ShapeError(
            f"slerp of {tuple(start.shape)} towards {tuple(end.shape)} by {share}; expected (B, D), (D,) and 0..1"
        )
    angle = torch.acos((start @ end).clamp(-1, 1))[:, None]
    sine = angle.sin()
    bends = sine > _SMALLEST_SINE
    ahead, behind = (
        torch.where(bends, (part * angle).sin() / sine.clamp_min(_SMALLEST_SINE), part) for part in (share, 1 - share)
    )
    return F.normalize(behind * start + ahead * end)


def protect_template(embeddings: Tensor, key: TemplateKey, share: float) -> Tensor:
    """Templates (B,D) of unit length: embeddings (B,D) rotated towards a key's noise, with dimensions dropped.

    Source: SlerpFace (Zhong et al., AAAI 2025). Differentiable. Raises ShapeError for a key of another size.
    """
    noise, kept = key.noise.to(embeddings), key.kept.to(embeddings.device)
    return F.normalize(slerp(F.normalize(embeddings), noise, share) * kept)
