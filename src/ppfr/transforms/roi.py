"""Facial region of interest: rasterised convex hulls of landmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.util.errors import ShapeError

# outline of a frontal face aligned to the ArcFace template, as (x, y) fractions of a 112x112 crop, drawn by us around
# the template's eyes (0.34, 0.46), (0.66, 0.46), nose (0.50, 0.64) and mouth corners (0.37, 0.82), (0.63, 0.82)
CANONICAL_OUTLINE = (
    (0.20, 0.34),
    (0.34, 0.27),
    (0.66, 0.27),
    (0.80, 0.34),
    (0.83, 0.55),
    (0.79, 0.75),
    (0.68, 0.92),
    (0.50, 0.99),
    (0.32, 0.92),
    (0.21, 0.75),
    (0.17, 0.55),
)


def hull_mask(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Rasterise the convex hull of each row of points.

    `points` (B,N,2) are (x, y) in pixels of `size` (height, width); the result (B,1,H,W) is 1 where a pixel's integer
    coordinates lie inside the hull or on it. Points on one line enclose nothing: their mask is 0. Raises ShapeError.
    """
    if points.ndim != 3 or points.shape[2] != 2 or points.shape[1] < 3:
        raise ShapeError(f"points have shape {tuple(points.shape)}; expected (B, N, 2) with at least 3 points")
    height, width = size
    rows = torch.arange(height, dtype=torch.float64, device=points.device)
    columns = torch.arange(width, dtype=torch.float64, device=points.device)
    masks = []
    for cloud in points.double():
        hull = _convex_hull(cloud)
        inside = torch.ones(height, width, dtype=torch.bool, device=points.device)
        if len(hull) < 3:
            inside.zero_()
        for start, end in zip(hull, hull.roll(-1, 0), strict=True):
            edge = end - start
            # left of every edge of a hull that turns counter-clockwise; the slack admits points on the edge itself
            inside &= edge[0] * (rows[:, None] - start[1]) - edge[1] * (columns[None] - start[0]) >= -1e-9
        masks.append(inside)
    return torch.stack(masks)[:, None].to(points.dtype)


def canonical_mask(size: tuple[int, int]) -> Tensor:
    """The hull of a frontal face aligned to the ArcFace template, (1,1,H,W) of 0 and 1."""
    outline = torch.tensor(CANONICAL_OUTLINE, dtype=torch.float64) * torch.tensor([size[1], size[0]])
    return hull_mask(outline[None], size).float()


def _convex_hull(points: Tensor) -> Tensor:
    """Corners of the hull of (N,2), counter-clockwise (Andrew's monotone chain, 1979)."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def chain(sequence: list[tuple[float, float]]) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for x, y in sequence:
            while len(corners) >= 2:
                (ax, ay), (bx, by) = corners[-2], corners[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                corners.pop()
            corners.append((x, y))
        return corners[:-1]

    corners = chain(ordered) + chain(ordered[::-1])
    return torch.tensor(corners, dtype=points.dtype, device=points.device).reshape(-1, 2)
