"""The camera: a background, and a picture of 8 bits from linear light."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ppfr.data.synthetic.canvas import Field, blur, enlarge
from ppfr.data.synthetic.traits import Shot

# the sensor noise of every picture is a part of this, moved about
_GRAIN = np.random.default_rng(0).standard_normal((160, 160, 3), np.float32)


def draw_background(size: int, rng: np.random.Generator) -> Field:
    """A blurred background (size, size, 3), linear."""
    base = rng.uniform(0.02, 0.6) * (1 + rng.normal(0, 0.1, 3))
    knots = (base * np.exp(rng.normal(0, 0.45, (5, 5, 1)) + rng.normal(0, 0.06, (5, 5, 3)))).astype(np.float32)
    return np.clip(enlarge(knots, size, size), 0, 1)


def develop(linear: Field, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blur, exposure, white balance, tone curve and noise of a camera."""
    size = linear.shape[0]
    if shot.blur > 0.2:
        linear = blur(linear, shot.blur * size / 112)
    exposed = linear * (1.25 * shot.exposure * shot.white_balance).astype(np.float32)
    tone = np.sqrt(np.maximum(exposed, 0))
    tone = tone / (1 + np.maximum(tone - 0.7, 0) * 0.6)  # highlights roll off rather than clip
    tone = (tone - 0.45) * np.float32(shot.contrast) + 0.45
    if shot.noise:
        row, column = rng.integers(0, _GRAIN.shape[0], 2)
        grain = np.roll(_GRAIN, (row, column), (0, 1))
        repeats = -(-size // len(grain))
        tone += np.tile(grain, (repeats, repeats, 1))[:size, :size] * np.float32(shot.noise)
    return np.clip(tone * 255 + 0.5, 0, 255).astype(np.uint8)
