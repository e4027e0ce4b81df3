"""A procedural face: a relief with colours, lit, turned and photographed, from a few dozen numbers.

No photograph and no learned model is behind it. A person is a set of `Traits` (the relief's proportions,
skin, eyes, moles) who wears some `Hair`; a picture is a `Shot` (pose, light, expression, camera). The relief
is a height field in front of the head's middle plane, shaded with soft Lambert light, cast shadows and a
little sheen, then seen from the shot's angle by following each pixel's ray onto the relief. Lengths are
pixels of the 112 x 112 ArcFace template (InsightFace, five landmarks), the origin lies midway between the
eyes, y points down, z towards the viewer.
"""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from ppfr.data.synthetic.canvas import LEFT, TOP, Canvas, Field, blur, curve, enlarge, look_up, mix, step
from ppfr.data.synthetic.traits import Hair, Points, Shot, Traits

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""ArcFace's five landmarks in a 112 x 112 crop: the two eyes, the nose tip, the two mouth corners."""

_OVERSAMPLING = 1.3
_LEVELS = 9  # of height at which a ray looks for the relief

# reflectances (linear RGB) between which skin, hair and irises are mixed
_PALE, _DARK = np.array([0.80, 0.56, 0.45]), np.array([0.17, 0.085, 0.05])
_HAIR = np.array(
    [[0.012, 0.010, 0.010], [0.05, 0.026, 0.014], [0.13, 0.07, 0.035], [0.38, 0.25, 0.12], [0.30, 0.29, 0.28]]
)
_IRIS = np.array(
    [[0.045, 0.022, 0.010], [0.12, 0.07, 0.025], [0.10, 0.13, 0.05], [0.10, 0.20, 0.30], [0.22, 0.26, 0.28]]
)
# the sensor noise of every picture is a part of this, moved about
_GRAIN = np.random.default_rng(0).standard_normal((160, 160, 3), np.float32)
_BLOOD = np.array([0.42, 0.10, 0.09])


class Person:
    """One person's head, bald until it wears some hair; `rng` places moles and freckles."""

    def __init__(self, traits: Traits, rng: np.random.Generator, size: int = 112) -> None:
        self.traits = traits
        self.size = size
        self.canvas = Canvas(_OVERSAMPLING * size / 112)
        self.skin = self._skin_tone()
        iris = mix(_IRIS, traits.iris_tone)
        rings = ((1.0, 0.35 * iris), (0.86, iris), (0.6, 1.35 * iris), (0.42, np.full(3, 0.02)))
        self._iris = [(radius * traits.iris_size, tone) for radius, tone in rings]
        self.outline = self._outline()
        relief, cover = self._head()
        self._bald = relief, cover, self._skin(rng), self._beard(rng)
        self.hair_colour = mix(_HAIR, traits.hair_tone)
        self.relief, _, self.reflectance, self.beard = self._bald
        self._layers = cv2.merge([cover, np.ones_like(cover)])  # cover and gloss

    # ------------------------------------------------------------------ shape

    def _skin_tone(self) -> Points:
        amount = float(np.clip(self.traits.melanin, 0, 1))
        tone = _PALE ** (1 - amount) * _DARK**amount
        return np.asarray(tone * (1 + self.traits.redness * np.array([1, -0.6, -1.2])))

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

    # ------------------------------------------------------------------ colour

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
        skin = (tint * self.skin).astype(np.float32)
        spots = self.skin * np.array([0.50, 0.38, 0.32])
        for _ in range(int(70 * max(0.0, t.freckles))):
            x, y = rng.normal(0, 20), rng.normal(16, 9)
            self._spot(skin, x, y, rng.uniform(0.4, 0.8), spots, rng.uniform(0.15, 0.4))
        for _ in range(max(0, round(t.moles))):
            x, y = rng.uniform(-30, 30), rng.uniform(-28, 56)
            self._spot(skin, x, y, rng.uniform(0.6, 1.2), 0.5 * spots, rng.uniform(0.5, 0.9))
        return skin

    def _spot(self, image: Field, x: float, y: float, radius: float, colour: Points, opacity: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 9)[:-1]
        circle = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
        self.canvas.paint(image, circle, colour, opacity, soft=0.25)

    def _beard(self, rng: np.random.Generator) -> Field:
        """How densely a beard would grow, 0..1 (H, W)."""
        t, canvas = self.traits, self.canvas
        line = 0.98 * t.mouth_height - 36 * step(np.abs(canvas.x) / self.outline - 0.42, 0.55)
        lower = step(canvas.y - line, 8) * step(np.abs(canvas.x) - t.mouth_width - 1, 6)
        lower = np.maximum(lower, step(canvas.y - t.mouth_height - t.lower_lip - 3, 6))
        lip = np.zeros_like(lower)
        canvas.bump(lip, 1.2, 0, 0.5 * (t.nose_length + t.mouth_height) + 3.2, 11, 2.6)
        lower = np.clip(np.maximum(lower, lip), 0, 1) * step(1.04 * t.chin_height - canvas.y, 4)
        strands = 1 + 0.35 * canvas.noise(rng, 80, 110)
        return np.asarray(np.clip(lower * strands, 0, 1), np.float32)

    def wear(self, hair: Hair, rng: np.random.Generator) -> None:
        """Give the person this hair in place of any other; `rng` places its strands."""
        t, canvas = self.traits, self.canvas
        self.hair_colour = mix(_HAIR, hair.tone)
        wave = canvas.noise(rng, 6, 9) * (1 + 3 * max(0.0, hair.waves))
        mask, outer, behind = self._haircut(hair, wave)
        streaks = self._strands(hair, rng)
        colour = np.maximum(self.hair_colour * (1 + 0.22 * streaks[:, :, None]), 0.004).astype(np.float32)
        relief, cover, skin, beard = self._bald
        share = mask / np.maximum(mask + (1 - mask) * cover, np.float32(1e-4))
        self.reflectance = skin + share[:, :, None] * (colour - skin)
        bow = 0.3 * t.depth * np.sqrt(np.clip(1 - (canvas.x / (outer + 1)) ** 2, 0, 1))
        thickness = mask * (np.maximum(bow - relief, 0) + np.float32(2.0))
        relief = relief + blur(thickness, 1.8 * canvas.scale) + 0.35 * mask * streaks
        cover = np.maximum(mask, 1 - (1 - cover) * (1 - behind * mask))
        self.beard = beard * (1 - mask)
        self.relief = self._extend(relief, cover)
        self._layers = cv2.merge([cover, 1 - np.float32(0.6) * mask])

    def _haircut(self, hair: Hair, wave: Field) -> tuple[Field, Field, Field]:
        """Where hair is, 0..1; half its outline's width at each row; and the part of it behind the head."""
        canvas, long = self.canvas, hair.length > 12
        away = np.abs(canvas.x) / self.traits.face_width
        edge = hair.line - hair.peak * np.exp(-((canvas.x / 7) ** 2)) + hair.temples * away**3
        top = step(edge + hair.slope * canvas.x + 0.6 * wave - canvas.y, 4.5)
        volume = max(0.5, hair.volume)
        if long:
            sides = step(np.abs(canvas.x) - (0.93 + 0.02 * wave) * self.outline, 3)
            sides *= step(hair.length + 2 * wave - canvas.y, 8)
            fall = curve(canvas.y, [(-60, 0.8), (-30, 1.0), (0, 1.6), (40, 1.9)])
            outer = np.maximum(self.outline, 0.93 * self.traits.face_width) + volume * fall
            reach = step(hair.length + 2 * wave - canvas.y, 6)
        else:
            sides = step(np.abs(canvas.x) - (0.975 + 0.003 * canvas.y) * self.outline, 3) * step(4 - canvas.y, 16)
            fall = curve(canvas.y, [(-60, 0.8), (-30, 1), (-8, 0.8), (8, 0)])
            outer = self.outline + volume * fall
            reach = step(6 - canvas.y, 6)
        behind = (1 - self._bald[1]) * reach
        mask = np.maximum(np.maximum(top, sides), behind) * step(outer + 0.4 * wave - np.abs(canvas.x), 2)
        return np.asarray(np.clip(mask, 0, 1), np.float32), outer, behind

    def _extend(self, relief: Field, cover: Field) -> Field:
        """Continue the relief beyond the head, so that a turned head keeps the outline of `cover`."""
        weight = cover**4
        beyond = blur(relief * weight, 1.3 * self.canvas.scale)
        beyond /= blur(weight, 1.3 * self.canvas.scale) + np.float32(1e-4)
        return relief * weight + beyond * (1 - weight)

    def _strands(self, hair: Hair, rng: np.random.Generator) -> Field:
        """Light and dark of strands that run from the parting down and around the head, or of curls."""
        canvas = self.canvas
        if hair.waves > 0.75:
            return canvas.noise(rng, 60, 72)
        knots = enlarge(rng.standard_normal((5, 160), np.float32), 640, 40)
        parting = 60 * hair.slope
        around = np.arctan2(canvas.x - parting, canvas.y + 90) / np.pi + 0.5
        along = np.hypot(canvas.x - parting, canvas.y + 90) / 170
        across, down = (around * 639).astype(np.float32), (along * 39).astype(np.float32)
        return look_up(knots, across, down)

    # ------------------------------------------------------------------ one picture

    def photograph(self, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """One picture (size, size, 3) RGB uint8; `rng` draws the background and the sensor's noise."""
        relief = self._expression(shot)
        reflectance = self._make_up(shot)
        columns, rows = self._rays(relief, shot)

        def seen(layers: cv2.typing.MatLike) -> Field:
            return look_up(layers, columns, rows)

        scale = self.canvas.scale / 8
        slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=scale)
        slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=scale)
        hollow = relief - cv2.blur(relief, (int(11 * self.canvas.scale),) * 2)
        shape = seen(cv2.merge([slope_x, slope_y, hollow, self._shadow(relief, shot.light)]))
        layers = seen(self._layers)
        radiance = _light(seen(reflectance), shape, layers[:, :, 1], shot)
        background = _background(self.size, rng)
        return _develop(background + layers[:, :, :1] * (radiance - background), shot, rng)

    def _expression(self, shot: Shot) -> Field:
        t, relief = self.traits, self.relief.copy()
        bump = partial(self.canvas.bump, relief)
        mouth, width, _ = self._mouth(shot)
        for side in (-1, 1):
            bump(2.2 * max(0.0, shot.smile), side * 1.1 * t.eye_distance, 20, 7, 5)
            bump(-(0.8 + 1.2 * max(0.0, shot.smile)), side * (width + 2.5), mouth - 3, 1.8, 4)
            fold = t.folds * (0.5 + max(0.0, shot.smile))
            bump(-max(0.0, fold), side * (t.nose_wings + 3.5), t.nose_length + 6, 1.5, 5)
        drop = 4.5 * shot.mouth_open
        bump(1.5, 0, mouth - 0.5 * t.upper_lip - 0.5, 0.6 * width, 0.6 * t.upper_lip + 0.3)
        bump(1.9, 0, mouth + drop + 0.55 * t.lower_lip, 0.5 * width, 0.6 * t.lower_lip + 0.3)
        bump(-(1.2 + 0.5 * drop), 0, mouth + 0.4 * drop, 0.5 * width, 0.9 + 0.4 * drop)
        return relief

    def _mouth(self, shot: Shot) -> tuple[float, float, float]:
        """The mouth's height, half width, and how far its corners lie above the middle."""
        t = self.traits
        width = t.mouth_width * (1 + 0.16 * shot.smile - 0.05 * shot.mouth_open)
        return t.mouth_height - 0.6 * shot.smile, width, t.mouth_corners + 2.2 * shot.smile

    def _make_up(self, shot: Shot) -> Field:
        """The reflectance with everything that is drawn on it: beard of the day, brows, eyes, mouth, glasses."""
        t = self.traits
        image = self.reflectance.copy()
        growth = np.float32(np.clip(t.beard + (shot.stubble if t.beard > -0.35 else 0), 0, 0.85)) * self.beard
        if growth.any():
            image += growth[:, :, None] * (np.maximum(self.hair_colour, 0.015).astype(np.float32) - image)
        for side in (-1, 1):
            self._nostril(image, side)
            self._brow(image, side, shot)
            self._eye(image, side, shot)
        self._lips(image, shot)
        self._highlights(image, shot)
        if shot.glasses:
            self._glasses(image, shot)
        return image

    def _nostril(self, image: Field, side: int) -> None:
        t = self.traits
        angle = np.linspace(0, 2 * np.pi, 13)[:-1]
        x = side * 0.52 * t.nose_wings + 1.7 * np.cos(angle)
        y = t.nose_length + 3.0 - 0.4 * t.nose_turn + 0.95 * np.sin(angle) + 0.25 * side * np.cos(angle)
        self.canvas.paint(image, np.stack([x, y], axis=1), 0.12 * self.skin, 0.8, soft=0.5)

    def _brow(self, image: Field, side: int, shot: Shot) -> None:
        t = self.traits
        s = np.linspace(0, 1, 12)
        x = t.eye_distance + t.brow_length * (1.9 * s - 0.95) + 0.6
        lift = t.brow_height + 0.9 * shot.brows + t.brow_tilt * (2 * s - 1) + 0.4 * side * t.asymmetry
        y = -(lift + t.brow_arch * np.sin(np.pi * np.clip(1.15 * s, 0, 1)) ** 1.5 - 1.5 * s**3)
        half = t.brow_thickness * np.clip(np.minimum(0.55 + 2.2 * s, 1.35 * (1.08 - s)), 0.12, 1)
        shape = np.concatenate([np.stack([x, y - half], 1), np.stack([x, y + half], 1)[::-1]])
        colour = 0.75 * np.minimum(self.hair_colour, 0.55 * self.skin)
        self.canvas.paint(
            image,
            shape * (side, 1),
            colour,
            float(np.clip(t.brow_density, 0.3, 0.98)),
            soft=0.55,
        )

    def _lids(self, side: int, shot: Shot) -> tuple[Points, Points]:
        """Points along the upper and the lower lid, from the inner to the outer corner."""
        t = self.traits
        s = np.linspace(0, 1, 15)
        x = t.eye_distance + t.eye_length * (2 * s - 1)
        slope = -t.eye_tilt * (2 * s - 1)
        opening = max(0.5, t.eye_opening * (1 - 0.12 * max(0.0, shot.smile)))
        power = np.log(0.5) / np.log(np.clip(t.eye_peak, 0.25, 0.75))
        upper = slope - opening * 1.12 * shot.eyelids * np.sin(np.pi * s**power) ** 0.85
        lower = slope + opening * (0.62 - 0.12 * shot.smile) * np.sin(np.pi * s ** (1 / power)) ** 0.9
        return np.stack([side * x, upper], axis=1), np.stack([side * x, lower], axis=1)

    def _eye(self, image: Field, side: int, shot: Shot) -> None:
        t, canvas = self.traits, self.canvas
        upper, lower = self._lids(side, shot)
        dark = 0.25 * np.minimum(self.hair_colour, 0.3 * self.skin)
        crease = upper + np.array([0, -max(0.7, t.lid_crease)])
        canvas.stroke(image, crease, 0.45 * self.skin, 0.8, 0.55, soft=0.35)
        ball = np.concatenate([upper, lower[::-1]])
        inside = np.zeros((*image.shape[:2], 1), np.float32)
        canvas.paint(inside, ball, np.ones(1))
        rows, columns = canvas.around(ball)
        eye = np.empty(image[rows, columns].shape, np.float32)
        eye[:] = np.array([0.50, 0.46, 0.44])
        full = image[rows, columns]
        iris_at = np.array([side * t.eye_distance + shot.gaze[0], -0.35 + shot.gaze[1]])
        canvas.disc(eye, (rows.start, columns.start), iris_at, self._iris)
        shade = np.clip((canvas.y[rows] - upper[:, 1].min()) / 2.6 + 0.35, 0.35, 1)[:, :, None]
        full += inside[rows, columns] * (eye * shade - full)
        canvas.stroke(image, upper, dark, 1.0, 0.9, soft=0.2)
        canvas.stroke(image, lower[2:], 0.4 * self.skin, 0.5, 0.5, soft=0.2)

    def _lips(self, image: Field, shot: Shot) -> None:
        t, canvas = self.traits, self.canvas
        mouth, width, corners = self._mouth(shot)
        s = np.linspace(-1, 1, 21)
        arc = 1 - s**2
        x = width * s
        seam = mouth + corners * (0.15 - s**2) + 0.3 * np.cos(3 * np.pi * s) * arc * 0.6
        gape = 4.5 * shot.mouth_open * arc**0.8
        lip_top = seam - t.upper_lip * (1 - 0.25 * max(0.0, shot.smile)) * np.clip(arc, 0, 1) ** 0.75
        lip_top += t.cupid_bow * np.exp(-((s / 0.13) ** 2)) - 0.25 * t.cupid_bow * np.exp(
            -(((np.abs(s) - 0.3) / 0.15) ** 2)
        )
        lip_bottom = seam + gape + t.lower_lip * (1 - 0.15 * max(0.0, shot.smile)) * arc**0.85
        strength = float(np.clip(t.lip_colour, 0.1, 0.9))
        red = self.skin * np.array([0.85, 0.55, 0.55]) * (1 - strength) + _BLOOD * strength * (0.4 + 0.6 * self.skin[0])
        line = np.stack([x, seam], axis=1)
        under = np.stack([x, seam + gape], axis=1)
        whole = np.concatenate([np.stack([x, lip_top], 1), np.stack([x, lip_bottom], 1)[::-1]])
        canvas.paint(image, whole, red, 0.8, soft=0.45)
        canvas.paint(image, np.concatenate([np.stack([x, lip_top], 1), line[::-1]]), 0.8 * red, 0.5, soft=0.3)
        if shot.mouth_open > 0.12:
            canvas.paint(
                image,
                np.concatenate([line, under[::-1]]),
                np.array([0.04, 0.012, 0.012]),
                1.0,
                soft=0.15,
            )
            teeth = np.minimum(seam + 2.6, seam + 0.75 * gape)
            row = slice(4, -4)
            shape = np.concatenate([line[row], np.stack([x, teeth], 1)[row][::-1]])
            canvas.paint(image, shape, np.array([0.50, 0.47, 0.42]), 0.9, soft=0.25)
        canvas.stroke(image, line, 0.22 * red, 0.7, 0.75, soft=0.25)

    def _shadow(self, relief: Field, light: Points) -> Field:
        """How far each pixel lies in the shadow of something nearer to the lamp, 0..1."""
        flat = float(np.hypot(light[0], light[1]))
        if flat < 0.15:
            return np.zeros_like(relief)
        scale = 0.5 * self.canvas.scale
        size = self.canvas.width // 2, self.canvas.height // 2
        small = np.asarray(cv2.resize(relief, size, interpolation=cv2.INTER_AREA), np.float32)
        shade = np.zeros_like(small)
        for distance in (3, 6, 10, 15):
            across, down = -distance * scale * light[:2] / flat
            move = np.array([[1, 0, across], [0, 1, down]])
            ahead = np.asarray(cv2.warpAffine(small, move, size, borderMode=cv2.BORDER_REPLICATE), np.float32)
            excess = ahead - small - np.float32(distance * light[2] / flat)
            shade = np.maximum(shade, np.float32(0.4) * excess)
        return enlarge(blur(np.minimum(shade, 1), 0.8 * scale), self.canvas.width, self.canvas.height)

    def _highlights(self, image: Field, shot: Shot) -> None:
        t = self.traits
        if shot.eyelids < 0.5:
            return
        for side in (-1, 1):
            x = side * t.eye_distance + shot.gaze[0] + 1.3 * shot.light[0]
            y = -0.6 + shot.gaze[1] + 1.0 * shot.light[1]
            self._spot(image, x, y, 0.5, np.array([0.8, 0.8, 0.8]), 0.7)

    def _glasses(self, image: Field, shot: Shot) -> None:
        t, canvas = self.traits, self.canvas
        colour = np.array([0.25, 0.22, 0.2]) * (1 - shot.glasses)
        angle = np.linspace(0, 2 * np.pi, 33)
        for side in (-1, 1):
            x = side * (t.eye_distance + 0.5) + 12.0 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.7
            y = 2 + 8.5 * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.7
            rim = np.stack([x, y], axis=1)
            canvas.stroke(image, rim, colour, 1.3, 0.9, soft=0.2)
            temple = np.array([[side * (t.eye_distance + 12), 0.0], [side * (t.face_width + 3), -1.0]])
            canvas.stroke(image, temple, colour, 1.2, 0.85, soft=0.2)
        bridge = np.array([[-t.eye_distance + 11, 1.0], [0, -0.8], [t.eye_distance - 11, 1.0]])
        canvas.stroke(image, bridge, colour, 1.2, 0.9, soft=0.2)

    def _rays(self, relief: Field, shot: Shot) -> tuple[Field, Field]:
        """Where on the canvas (columns, rows) each pixel of the posed and aligned picture looks."""
        canvas, size = self.canvas, self.size
        turn = np.array([[np.cos(shot.roll), -np.sin(shot.roll)], [np.sin(shot.roll), np.cos(shot.roll)]])
        lean = np.array([np.sin(shot.yaw), np.sin(shot.pitch)])
        squeeze = np.array([np.cos(shot.yaw), np.cos(shot.pitch)])
        marks = self._landmarks(shot)
        heights = np.array([canvas.sample(relief, x, y) for x, y in marks])
        posed = (marks * squeeze + heights[:, None] * lean) @ turn.T
        # as a detector and an aligner would: the five landmarks, found a little wrongly, go to the template
        matrix, offset = _similarity(posed + shot.misalignment, TEMPLATE)
        back = turn.T @ np.linalg.inv(matrix)
        grid = (np.arange(size) + 0.5) * (112 / size)
        across, down = np.meshgrid(grid - offset[0], grid - offset[1], sparse=True)
        foot = [
            ((back[axis, 0] * across + back[axis, 1] * down) / squeeze[axis] - corner) * canvas.scale - 0.5
            for axis, corner in enumerate((LEFT, TOP))
        ]
        step = canvas.scale * lean / squeeze
        return self._meet(relief, foot[0].astype(np.float32), foot[1].astype(np.float32), step)

    def _meet(self, relief: Field, columns: Field, rows: Field, step: Points) -> tuple[Field, Field]:
        """Follow rays to the relief from the front; at height z they are over (columns, rows) - z * step."""
        size = self.size
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

    def _landmarks(self, shot: Shot) -> Points:
        t = self.traits
        mouth, width, corners = self._mouth(shot)
        corner = mouth - 0.85 * corners
        return np.array(
            [(-t.eye_distance, 0), (t.eye_distance, 0), (0, t.nose_length), (-width, corner), (width, corner)]
        )


def _similarity(source: Points, target: Points) -> tuple[Points, Points]:
    """Rotation with scale (2, 2) and offset that bring `source` nearest to `target` (Umeyama, PAMI 1991)."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    dot, cross = float((a * b).sum()), float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum())
    matrix = np.array([[dot, -cross], [cross, dot]]) / float((a**2).sum())
    return matrix, target.mean(axis=0) - matrix @ source.mean(axis=0)


def _light(reflectance: Field, shape: Field, gloss: Field, shot: Shot) -> Field:
    """Radiance (size, size, 3), linear: soft light all round and one lamp with its shadows."""
    slope_x, slope_y, hollow, shadow = np.ascontiguousarray(shape.transpose(2, 0, 1))
    length = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)

    def facing(direction: Points) -> Field:
        x, y, z = (np.float32(value) for value in direction / np.linalg.norm(direction))
        return np.asarray((z - slope_x * x - slope_y * y) * length)

    lamp = np.float32(shot.lamp) * (1 - np.float32(shot.shadow) * shadow)
    ambient = np.clip(0.62 + 0.25 * length - 0.12 * slope_y * length + 0.05 * hollow, 0.15, 1.2)
    ambient *= np.float32(1 - shot.lamp)
    front = facing(shot.light)
    lit = []
    # light enters skin and comes out again beside: the more so the redder it is, so shadows' edges are warm
    for wrap, tint in zip((0.32, 0.18, 0.14), shot.light_colour, strict=True):
        soft = np.maximum((front + np.float32(wrap)) * np.float32(1.35 * tint / (1 + wrap)), 0)
        lit.append(soft * lamp + ambient)
    sheen = np.maximum(facing(shot.light / np.linalg.norm(shot.light) + (0, 0, 1)), 0)
    for _ in range(4):
        sheen = sheen * sheen
    sheen *= lamp * gloss * np.float32(0.3 * shot.sheen)
    return np.asarray(reflectance * cv2.merge(lit) + sheen[:, :, None])


def _background(size: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(0.02, 0.6) * (1 + rng.normal(0, 0.1, 3))
    knots = (base * np.exp(rng.normal(0, 0.45, (5, 5, 1)) + rng.normal(0, 0.06, (5, 5, 3)))).astype(np.float32)
    return np.clip(enlarge(knots, size, size), 0, 1)


def _develop(linear: Field, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
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
