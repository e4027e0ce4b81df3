"""The pose of a head: which point of the relief each pixel of the aligned picture shows."""

from __future__ import annotations

import numpy as np

from ppfr.data.synthetic.canvas import LEFT, TOP, Canvas, Field, look_up
from ppfr.data.synthetic.traits import Points, Shot

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""ArcFace's five landmarks in a 112 x 112 crop: the two eyes, the nose tip, the two mouth corners."""

_LEVELS = 9  # of height at which a ray is compared with the relief


def view_rays(canvas: Canvas, relief: Field, marks: Points, shot: Shot, size: int) -> tuple[Field, Field]:
    """The position on the canvas, columns and rows (size, size), that each pixel of the aligned picture shows."""
    turn = np.array([[np.cos(shot.roll), -np.sin(shot.roll)], [np.sin(shot.roll), np.cos(shot.roll)]])
    lean = np.array([np.sin(shot.yaw), np.sin(shot.pitch)])
    squeeze = np.array([np.cos(shot.yaw), np.cos(shot.pitch)])
    heights = np.array([canvas.sample(relief, x, y) for x, y in marks])
    posed = (marks * squeeze + heights[:, None] * lean) @ turn.T
    # as a detector and an aligner would: the five landmarks, found a little wrongly, go to the template
    matrix, offset = similarity(posed + shot.misalignment, TEMPLATE)
    back = turn.T @ np.linalg.inv(matrix)
    grid = (np.arange(size) + 0.5) * (112 / size)
    across, down = np.meshgrid(grid - offset[0], grid - offset[1], sparse=True)
    foot = [
        ((back[axis, 0] * across + back[axis, 1] * down) / squeeze[axis] - corner) * canvas.scale - 0.5
        for axis, corner in enumerate((LEFT, TOP))
    ]
    step = canvas.scale * lean / squeeze
    return meet_relief(relief, foot[0].astype(np.float32), foot[1].astype(np.float32), step)


def meet_relief(relief: Field, columns: Field, rows: Field, step: Points) -> tuple[Field, Field]:
    """Follow rays to the relief from the front; at height z they are over (columns, rows) - z * step."""
    size = len(columns)
    levels = np.linspace(float(relief.max()) + 0.01, 0, _LEVELS, dtype=np.float32)[:, None, None]
    over = columns - levels * np.float32(step[0]), rows - levels * np.float32(step[1])
    below = look_up(relief, over[0].reshape(-1, size), over[1].reshape(-1, size))
    depth = below.reshape(_LEVELS, size, size) - levels
    depth[0] = -1  # nothing is in front of the first level
    depth[-1] = np.maximum(depth[-1], 0)  # beyond the relief a ray ends at the last
    first = (depth >= 0).argmax(axis=0)[None]
    after = np.take_along_axis(depth, first, axis=0)[0]
    before = np.take_along_axis(depth, first - 1, axis=0)[0]
    height = levels[first[0], 0, 0] + (levels[0] - levels[1]) * after / (after - before)
    return columns - height * np.float32(step[0]), rows - height * np.float32(step[1])


def similarity(source: Points, target: Points) -> tuple[Points, Points]:
    """Rotation with scale (2, 2) and offset that bring `source` nearest to `target` (Umeyama, PAMI 1991)."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    dot, cross = float((a * b).sum()), float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum())
    matrix = np.array([[dot, -cross], [cross, dot]]) / float((a**2).sum())
    return matrix, target.mean(axis=0) - matrix @ source.mean(axis=0)
