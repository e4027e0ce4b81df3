"""The face under an expression: where mouth, eyelids and landmarks are, and how the relief changes."""

from __future__ import annotations

from functools import partial

import numpy as np

from ppfr.data.synthetic.canvas import Canvas, Field
from ppfr.data.synthetic.traits import Points, Shot, Traits


class Expression:
    """The face of some traits under the expression of one shot."""

    def __init__(self, traits: Traits, shot: Shot) -> None:
        self.traits = traits
        self.shot = shot

    def mouth(self) -> tuple[float, float, float]:
        """The mouth's height, half width, and how far its corners lie above the middle."""
        t = self.traits
        width = t.mouth_width * (1 + 0.16 * self.shot.smile - 0.05 * self.shot.mouth_open)
        return t.mouth_height - 0.6 * self.shot.smile, width, t.mouth_corners + 2.2 * self.shot.smile

    def lids(self, side: int) -> tuple[Points, Points]:
        """Points along the upper and the lower lid, from the inner to the outer corner."""
        t = self.traits
        s = np.linspace(0, 1, 15)
        x = t.eye_distance + t.eye_length * (2 * s - 1)
        slope = -t.eye_tilt * (2 * s - 1)
        opening = max(0.5, t.eye_opening * (1 - 0.12 * max(0.0, self.shot.smile)))
        power = np.log(0.5) / np.log(np.clip(t.eye_peak, 0.25, 0.75))
        upper = slope - opening * 1.12 * self.shot.eyelids * np.sin(np.pi * s**power) ** 0.85
        lower = slope + opening * (0.62 - 0.12 * self.shot.smile) * np.sin(np.pi * s ** (1 / power)) ** 0.9
        return np.stack([side * x, upper], axis=1), np.stack([side * x, lower], axis=1)

    def landmarks(self) -> Points:
        """The five landmarks (5, 2): eyes, tip of the nose, corners of the mouth."""
        t = self.traits
        mouth, width, corners = self.mouth()
        corner = mouth - 0.85 * corners
        return np.array(
            [(-t.eye_distance, 0), (t.eye_distance, 0), (0, t.nose_length), (-width, corner), (width, corner)]
        )

    def apply(self, relief: Field, canvas: Canvas) -> Field:
        """The relief (H, W) of the face with this expression."""
        t, relief = self.traits, relief.copy()
        bump = partial(canvas.bump, relief)
        mouth, width, _ = self.mouth()
        for side in (-1, 1):
            bump(2.2 * max(0.0, self.shot.smile), side * 1.1 * t.eye_distance, 20, 7, 5)
            bump(-(0.8 + 1.2 * max(0.0, self.shot.smile)), side * (width + 2.5), mouth - 3, 1.8, 4)
            fold = t.folds * (0.5 + max(0.0, self.shot.smile))
            bump(-max(0.0, fold), side * (t.nose_wings + 3.5), t.nose_length + 6, 1.5, 5)
        drop = 4.5 * self.shot.mouth_open
        bump(1.5, 0, mouth - 0.5 * t.upper_lip - 0.5, 0.6 * width, 0.6 * t.upper_lip + 0.3)
        bump(1.9, 0, mouth + drop + 0.55 * t.lower_lip, 0.5 * width, 0.6 * t.lower_lip + 0.3)
        bump(-(1.2 + 0.5 * drop), 0, mouth + 0.4 * drop, 0.5 * width, 0.9 + 0.4 * drop)
        return relief
