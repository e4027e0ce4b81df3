"""The geometry of a head: a relief in front of its middle plane, as a height field, and its change by expression."""

from __future__ import annotations

from functools import partial

import numpy as np

from ppfr.data.synthetic.canvas import Canvas, Field, blur, curve, step
from ppfr.data.synthetic.traits import Points, Shot, Traits


class HeadGeometry:
    """The bald head of some traits: `outline` (H, 1) is half the face's width at each row, `relief` (H, W) its height.

    `cover` (H, W) is how much of each pixel the head with neck and ears covers, 0..1.
    """

    def __init__(self, traits: Traits, canvas: Canvas) -> None:
        self.traits = traits
        self.canvas = canvas
        self.outline = self._outline()
        self.relief, self.cover = self._head()

    def _outline(self) -> Field:
        """Half the face's width at each row (H, 1)."""
        t, w = self.traits, self.traits.face_width
        chin = t.chin_height
        knots = [
            (-72, 0.0),
            (-46, 0.90 * t.forehead_width),
            (-30, t.forehead_width),
            (-6, 1.0),
            (0.22 * chin, t.cheek_width),
            (0.68 * chin, t.jaw_width),
            (0.90 * chin, t.chin_width),
            (1.04 * chin, 0.0),
        ]
        # through the squares of the widths, so that crown and chin are round
        squares = curve(self.canvas.y, [(y, half**2) for y, half in knots])
        return np.maximum(w * np.sqrt(np.maximum(squares, 0)), np.float32(0.01))

    def _head(self) -> tuple[Field, Field]:
        """The relief (H, W) and how much of each pixel the head with neck and ears covers."""
        t, canvas = self.traits, self.canvas
        chin = t.chin_height
        profile = curve(
            canvas.y,
            [(-66, 0.55), (-45, 0.82), (-25, 0.95), (0, 0.97), (25, 1.0), (0.8 * chin, 0.97), (chin, 0.84)],
        )
        across = np.abs(canvas.x) / self.outline
        # no steeper at its edge than the largest turn: the silhouette stays the outline and needs no search
        dome = np.clip(1 - across**2.2, 0, 1)
        face = np.where(canvas.y < 1.05 * chin, t.depth * profile * dome, 0).astype(np.float32)
        cover = step(self.outline - np.abs(canvas.x), 1.2) * step(1.03 * chin - canvas.y, 1.5)

        neck_width = 0.66 * t.face_width
        bow = np.sqrt(np.clip(1 - (canvas.x / neck_width) ** 2, 0, 1))
        neck = (0.42 * t.depth * bow * step(canvas.y - 30, 12)).astype(np.float32)
        neck_cover = step(neck_width - np.abs(canvas.x), 2) * step(canvas.y - 32, 8)

        ears = sum(self._ear(side) for side in (-1, 1))
        ear_cover = step(np.asarray(ears, np.float32) - 0.25, 0.25)
        relief = np.maximum(np.maximum(face, neck), 5 * np.asarray(ears, np.float32) * (1 - cover))
        relief += self._features() * cover
        covered = np.maximum(np.maximum(cover, neck_cover), ear_cover)
        return blur(relief, 0.7 * canvas.scale), covered

    def _ear(self, side: int) -> Field:
        t, canvas = self.traits, self.canvas
        x, y = side * (t.face_width + 0.4 * t.ear_spread), 6.0
        outer = np.sqrt(((canvas.x - x) / (2.2 + t.ear_spread)) ** 2 + ((canvas.y - y) / (1.25 * t.ear_size)) ** 2)
        rim = np.exp(-(((outer - 0.75) / 0.25) ** 2))
        return np.asarray(np.clip(1.15 - outer, 0, 1) + 0.35 * rim * (outer < 1.15), np.float32)

    def _features(self) -> Field:
        """Bumps and hollows on the dome of the face."""
        t, relief = self.traits, self._nose()
        bump = partial(self.canvas.bump, relief)
        for side in (-1, 1):
            skew = 1 + 0.12 * side * t.asymmetry
            eye = side * t.eye_distance
            bump(t.brow_ridge * skew, 0.75 * eye, -t.brow_height + 1, 8, 3)
            bump(-t.eye_depth, eye, -1, 7.5, 5)
            bump(-0.7 * t.eye_depth, 0.55 * eye, -1.5, 4, 5)
            bump(2.6, eye, 0.3, 4.6, 3.2)
            bump(-1.5 * max(0.0, t.eye_bags), eye * 0.95, 6.5, 5, 1.6)
            bump(t.cheekbones * skew, 1.25 * eye, 17, 9, 6)
            bump(-t.cheek_hollow, 1.3 * eye, 36, 7, 9)
            bump(0.8 * t.folds, 0.95 * eye, 29, 6, 8)
            bump(t.forehead_bump * skew, 0.6 * eye, -26, 9, 8)
            bump(-2.0, side * 1.75 * 17.6, -14, 5, 10)
        mouth = t.mouth_height
        bump(2.6, 0, mouth, 11, 8)
        bump(-1.0, 0, 0.5 * (t.nose_length + mouth) + 1, 1.6, 4)
        bump(-2.4, 0, mouth + t.lower_lip + 4.5, 9, 2.6)
        bump(t.chin_bump, 0, 0.9 * t.chin_height, 8, 6)
        bump(-(max(0.0, t.chin_cleft) * 1.6), 0, 0.92 * t.chin_height, 1.4, 5)
        return relief

    def _nose(self) -> Field:
        t, canvas = self.traits, self.canvas
        tip = t.nose_length + t.nose_turn
        ridge = curve(
            canvas.y,
            [
                (-16, 0),
                (-7, 0.16 * t.nose_height),
                (0.35 * tip, 0.5 * t.nose_height + t.nose_hump),
                (tip - 2, 0.92 * t.nose_height),
                (tip + 1, 0.9 * t.nose_height),
                (t.nose_length + 7.5, 0),
            ],
        )
        width = curve(canvas.y, [(-12, 1.5 * t.nose_bridge), (2, t.nose_bridge), (tip, 1.35 * t.nose_bridge)])
        nose = ridge * np.exp(-0.5 * (np.abs(canvas.x) / width) ** 1.7)
        canvas.bump(nose, 0.26 * t.nose_height, 0, tip - 0.5, 0.8 * t.nose_tip, 0.75 * t.nose_tip)
        for side in (-1, 1):
            canvas.bump(nose, 0.34 * t.nose_height, side * (t.nose_wings - 1.6), t.nose_length + 0.3, 2.4, 2.8)
        return np.asarray(nose, np.float32)


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
