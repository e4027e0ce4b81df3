"""The features of a face, painted on its reflectance: beard, brows, eyes, nostrils, mouth, glasses."""

from __future__ import annotations

import numpy as np

from ppfr.data.synthetic.canvas import Canvas, Field, mix
from ppfr.data.synthetic.geometry import Expression
from ppfr.data.synthetic.hair import Surface
from ppfr.data.synthetic.traits import Points

# reflectances (linear RGB) between which irises are mixed
_IRIS = np.array(
    [[0.045, 0.022, 0.010], [0.12, 0.07, 0.025], [0.10, 0.13, 0.05], [0.10, 0.20, 0.30], [0.22, 0.26, 0.28]]
)
_BLOOD = np.array([0.42, 0.10, 0.09])


class FeaturePainter:
    """Paints the features of one shot; `skin` (3) is the tone that their colours are mixed with."""

    def __init__(self, canvas: Canvas, skin: Points, surface: Surface, expression: Expression) -> None:
        self.canvas = canvas
        self.skin = skin
        self.surface = surface
        self.hair_colour = surface.hair_colour
        self.expression = expression
        self.traits = expression.traits
        self.shot = expression.shot

    def paint(self) -> Field:
        """The reflectance (H, W, 3) with beard of the day, brows, eyes, mouth and glasses."""
        t = self.traits
        image = self.surface.reflectance.copy()
        growth = (
            np.float32(np.clip(t.beard + (self.shot.stubble if t.beard > -0.35 else 0), 0, 0.85)) * self.surface.beard
        )
        if growth.any():
            image += growth[:, :, None] * (np.maximum(self.hair_colour, 0.015).astype(np.float32) - image)
        for side in (-1, 1):
            self._nostril(image, side)
            self._brow(image, side)
            self._eye(image, side)
        self._lips(image)
        self._highlights(image)
        if self.shot.glasses:
            self._glasses(image)
        return image

    def _nostril(self, image: Field, side: int) -> None:
        t = self.traits
        angle = np.linspace(0, 2 * np.pi, 13)[:-1]
        x = side * 0.52 * t.nose_wings + 1.7 * np.cos(angle)
        y = t.nose_length + 3.0 - 0.4 * t.nose_turn + 0.95 * np.sin(angle) + 0.25 * side * np.cos(angle)
        self.canvas.paint(image, np.stack([x, y], axis=1), 0.12 * self.skin, 0.8, soft=0.5)

    def _brow(self, image: Field, side: int) -> None:
        t = self.traits
        s = np.linspace(0, 1, 12)
        x = t.eye_distance + t.brow_length * (1.9 * s - 0.95) + 0.6
        lift = t.brow_height + 0.9 * self.shot.brows + t.brow_tilt * (2 * s - 1) + 0.4 * side * t.asymmetry
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

    def _eye(self, image: Field, side: int) -> None:
        t, canvas = self.traits, self.canvas
        iris = mix(_IRIS, t.iris_tone)
        shades = ((1.0, 0.35 * iris), (0.86, iris), (0.6, 1.35 * iris), (0.42, np.full(3, 0.02)))
        rings = [(radius * t.iris_size, tone) for radius, tone in shades]
        upper, lower = self.expression.lids(side)
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
        iris_at = np.array([side * t.eye_distance + self.shot.gaze[0], -0.35 + self.shot.gaze[1]])
        canvas.disc(eye, (rows.start, columns.start), iris_at, rings)
        shade = np.clip((canvas.y[rows] - upper[:, 1].min()) / 2.6 + 0.35, 0.35, 1)[:, :, None]
        full += inside[rows, columns] * (eye * shade - full)
        canvas.stroke(image, upper, dark, 1.0, 0.9, soft=0.2)
        canvas.stroke(image, lower[2:], 0.4 * self.skin, 0.5, 0.5, soft=0.2)

    def _lips(self, image: Field) -> None:
        t, canvas = self.traits, self.canvas
        mouth, width, corners = self.expression.mouth()
        s = np.linspace(-1, 1, 21)
        arc = 1 - s**2
        x = width * s
        seam = mouth + corners * (0.15 - s**2) + 0.3 * np.cos(3 * np.pi * s) * arc * 0.6
        gape = 4.5 * self.shot.mouth_open * arc**0.8
        lip_top = seam - t.upper_lip * (1 - 0.25 * max(0.0, self.shot.smile)) * np.clip(arc, 0, 1) ** 0.75
        lip_top += t.cupid_bow * np.exp(-((s / 0.13) ** 2)) - 0.25 * t.cupid_bow * np.exp(
            -(((np.abs(s) - 0.3) / 0.15) ** 2)
        )
        lip_bottom = seam + gape + t.lower_lip * (1 - 0.15 * max(0.0, self.shot.smile)) * arc**0.85
        strength = float(np.clip(t.lip_colour, 0.1, 0.9))
        red = self.skin * np.array([0.85, 0.55, 0.55]) * (1 - strength) + _BLOOD * strength * (0.4 + 0.6 * self.skin[0])
        line = np.stack([x, seam], axis=1)
        under = np.stack([x, seam + gape], axis=1)
        whole = np.concatenate([np.stack([x, lip_top], 1), np.stack([x, lip_bottom], 1)[::-1]])
        canvas.paint(image, whole, red, 0.8, soft=0.45)
        canvas.paint(image, np.concatenate([np.stack([x, lip_top], 1), line[::-1]]), 0.8 * red, 0.5, soft=0.3)
        if self.shot.mouth_open > 0.12:
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

    def _highlights(self, image: Field) -> None:
        t = self.traits
        if self.shot.eyelids < 0.5:
            return
        for side in (-1, 1):
            x = side * t.eye_distance + self.shot.gaze[0] + 1.3 * self.shot.light[0]
            y = -0.6 + self.shot.gaze[1] + 1.0 * self.shot.light[1]
            self.canvas.spot(image, x, y, 0.5, np.array([0.8, 0.8, 0.8]), 0.7)

    def _glasses(self, image: Field) -> None:
        t, canvas = self.traits, self.canvas
        colour = np.array([0.25, 0.22, 0.2]) * (1 - self.shot.glasses)
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
