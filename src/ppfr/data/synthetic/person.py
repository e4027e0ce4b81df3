"""A procedural face: a relief with colours, lit, turned and photographed, from a few dozen numbers.

No photograph and no learned model is behind it. A person is a set of `Traits` (the relief's proportions,
skin, eyes, moles) who wears some `Hair`; a picture is a `Shot` (pose, light, expression, camera). The relief
is a height field in front of the head's middle plane, shaded with soft Lambert light, cast shadows and a
little sheen, then seen from the shot's angle by following each pixel's ray onto the relief. Lengths are
pixels of the 112 x 112 ArcFace template (InsightFace, five landmarks), the origin lies midway between the
eyes, y points down, z towards the viewer.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ppfr.data.synthetic.camera import develop, draw_background
from ppfr.data.synthetic.canvas import Canvas, Field, look_up
from ppfr.data.synthetic.features import FeaturePainter
from ppfr.data.synthetic.geometry import Expression, HeadGeometry
from ppfr.data.synthetic.hair import bald, with_hair
from ppfr.data.synthetic.light import cast_shadow, shade
from ppfr.data.synthetic.pose import view_rays
from ppfr.data.synthetic.skin import Skin
from ppfr.data.synthetic.traits import Hair, Shot, Traits

_OVERSAMPLING = 1.3


class Person:
    """One person's head, bald until it wears some hair; `rng` places moles and freckles."""

    def __init__(self, traits: Traits, rng: np.random.Generator, size: int = 112) -> None:
        self.traits = traits
        self.size = size
        self.canvas = Canvas(_OVERSAMPLING * size / 112)
        self.head = HeadGeometry(traits, self.canvas)
        self.skin = Skin(self.head, rng)
        self.surface = bald(self.head, self.skin)

    def wear(self, hair: Hair, rng: np.random.Generator) -> None:
        """Give the person this hair in place of any other; `rng` places its strands."""
        self.surface = with_hair(self.head, self.skin, hair, rng)

    def photograph(self, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """One picture (size, size, 3) RGB uint8; `rng` draws the background and the sensor's noise."""
        canvas, expression = self.canvas, Expression(self.traits, shot)
        relief = expression.apply(self.surface.relief, canvas)
        reflectance = FeaturePainter(canvas, self.skin.tone, self.surface, expression).paint()
        columns, rows = view_rays(canvas, relief, expression.landmarks(), shot, self.size)

        def seen(layers: cv2.typing.MatLike) -> Field:
            return look_up(layers, columns, rows)

        scale = canvas.scale / 8
        slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=scale)
        slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=scale)
        hollow = relief - cv2.blur(relief, (int(11 * canvas.scale),) * 2)
        shape = seen(cv2.merge([slope_x, slope_y, hollow, cast_shadow(canvas, relief, shot.light)]))
        layers = seen(self.surface.layers)
        radiance = shade(seen(reflectance), shape, layers[:, :, 1], shot)
        background = draw_background(self.size, rng)
        return develop(background + layers[:, :, :1] * (radiance - background), shot, rng)
