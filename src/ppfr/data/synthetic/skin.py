"""The skin of a head: its reflectance with moles and freckles, and how densely a beard would grow."""

from __future__ import annotations

import numpy as np

from ppfr.data.synthetic.canvas import Field, step
from ppfr.data.synthetic.geometry import HeadGeometry
from ppfr.data.synthetic.traits import Points

# reflectances (linear RGB) between which skin is mixed
_PALE, _DARK = np.array([0.80, 0.56, 0.45]), np.array([0.17, 0.085, 0.05])


class Skin:
    """Skin of a head: `tone` (3), linear `reflectance` (H, W, 3) of the bare head, and `beard` (H, W), 0..1.

    `rng` places moles, freckles and the strands of the beard.
    """

    def __init__(self, head: HeadGeometry, rng: np.random.Generator) -> None:
        self.traits = head.traits
        self.canvas = head.canvas
        self.tone = self._skin_tone()
        self.reflectance = self._skin(rng)
        self.beard = self._beard(rng, head.outline)

    def _skin_tone(self) -> Points:
        amount = float(np.clip(self.traits.melanin, 0, 1))
        tone = _PALE ** (1 - amount) * _DARK**amount
        return np.asarray(tone * (1 + self.traits.redness * np.array([1, -0.6, -1.2])))

    def _skin(self, rng: np.random.Generator) -> Field:
        """Linear reflectance (H, W, 3) of the bare head."""
        t, canvas = self.traits, self.canvas
        tone = 1 + t.blotches * canvas.noise(rng, 9, 9) + 0.025 * canvas.noise(rng, 70, 70)
        blood = 0.05 * canvas.noise(rng, 7, 7)
        tone *= 1 - 0.35 * step(canvas.y - 0.99 * t.chin_height, 6)
        for side in (-1, 1):
            canvas.bump(blood, t.flush, side * 21, 21, 9, 9)
            canvas.bump(tone, -0.22 * max(0.0, t.eye_bags), side * t.eye_distance * 0.95, 5.5, 5.5, 2.2)
            canvas.bump(tone, -0.10, side * t.eye_distance, -3.5, 7, 3)
        canvas.bump(blood, 0.7 * t.flush, 0, t.nose_length, 5, 5)
        tint = np.stack([tone * (1 + 0.10 * blood), tone * (1 - 0.12 * blood), tone * (1 - 0.12 * blood)], axis=2)
        skin = (tint * self.tone).astype(np.float32)
        spots = self.tone * np.array([0.50, 0.38, 0.32])
        for _ in range(int(70 * max(0.0, t.freckles))):
            x, y = rng.normal(0, 20), rng.normal(16, 9)
            canvas.spot(skin, x, y, rng.uniform(0.4, 0.8), spots, rng.uniform(0.15, 0.4))
        for _ in range(max(0, round(t.moles))):
            x, y = rng.uniform(-30, 30), rng.uniform(-28, 56)
            canvas.spot(skin, x, y, rng.uniform(0.6, 1.2), 0.5 * spots, rng.uniform(0.5, 0.9))
        return skin

    def _beard(self, rng: np.random.Generator, outline: Field) -> Field:
        """How densely a beard would grow, 0..1 (H, W)."""
        t, canvas = self.traits, self.canvas
        line = 0.98 * t.mouth_height - 36 * step(np.abs(canvas.x) / outline - 0.42, 0.55)
        lower = step(canvas.y - line, 8) * step(np.abs(canvas.x) - t.mouth_width - 1, 6)
        lower = np.maximum(lower, step(canvas.y - t.mouth_height - t.lower_lip - 3, 6))
        lip = np.zeros_like(lower)
        canvas.bump(lip, 1.2, 0, 0.5 * (t.nose_length + t.mouth_height) + 3.2, 11, 2.6)
        lower = np.clip(np.maximum(lower, lip), 0, 1) * step(1.04 * t.chin_height - canvas.y, 4)
        strands = 1 + 0.35 * canvas.noise(rng, 80, 110)
        return np.asarray(np.clip(lower * strands, 0, 1), np.float32)
