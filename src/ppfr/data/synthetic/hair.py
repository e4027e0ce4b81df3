"""Hair on a head: where it is, how its strands run, and the surface of head and hair together."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ppfr.data.synthetic.canvas import Canvas, Field, blur, curve, enlarge, look_up, mix, step
from ppfr.data.synthetic.geometry import HeadGeometry
from ppfr.data.synthetic.skin import Skin
from ppfr.data.synthetic.traits import Hair, Points

# reflectances (linear RGB) between which hair is mixed
_HAIR = np.array(
    [[0.012, 0.010, 0.010], [0.05, 0.026, 0.014], [0.13, 0.07, 0.035], [0.38, 0.25, 0.12], [0.30, 0.29, 0.28]]
)


class Surface(NamedTuple):
    """A head, with or without hair, as it is lit and photographed.

    `relief` (H, W), linear `reflectance` (H, W, 3), density of the `beard` (H, W), `layers` (H, W, 2) of cover and
    gloss, and the colour of the hair (3).
    """

    relief: Field
    reflectance: Field
    beard: Field
    layers: cv2.typing.MatLike
    hair_colour: Points


def bald(head: HeadGeometry, skin: Skin) -> Surface:
    """A head without hair."""
    layers = cv2.merge([head.cover, np.ones_like(head.cover)])
    return Surface(head.relief, skin.reflectance, skin.beard, layers, mix(_HAIR, head.traits.hair_tone))


def with_hair(head: HeadGeometry, skin: Skin, hair: Hair, rng: np.random.Generator) -> Surface:
    """A head with this hair; `rng` places its strands."""
    canvas = head.canvas
    tone = mix(_HAIR, hair.tone)
    wave = canvas.noise(rng, 6, 9) * (1 + 3 * max(0.0, hair.waves))
    mask, outer, behind = _haircut(head, hair, wave)
    streaks = _strands(canvas, hair, rng)
    colour = np.maximum(tone * (1 + 0.22 * streaks[:, :, None]), 0.004).astype(np.float32)
    relief, cover = head.relief, head.cover
    share = mask / np.maximum(mask + (1 - mask) * cover, np.float32(1e-4))
    reflectance = skin.reflectance + share[:, :, None] * (colour - skin.reflectance)
    bow = 0.3 * head.traits.depth * np.sqrt(np.clip(1 - (canvas.x / (outer + 1)) ** 2, 0, 1))
    thickness = mask * (np.maximum(bow - relief, 0) + np.float32(2.0))
    relief = relief + blur(thickness, 1.8 * canvas.scale) + 0.35 * mask * streaks
    cover = np.maximum(mask, 1 - (1 - cover) * (1 - behind * mask))
    beard = skin.beard * (1 - mask)
    layers = cv2.merge([cover, 1 - np.float32(0.6) * mask])
    return Surface(_extend(canvas, relief, cover), reflectance, beard, layers, tone)


def _haircut(head: HeadGeometry, hair: Hair, wave: Field) -> tuple[Field, Field, Field]:
    """Where hair is, 0..1; half its outline's width at each row; and the part of it behind the head."""
    canvas, long = head.canvas, hair.length > 12
    away = np.abs(canvas.x) / head.traits.face_width
    edge = hair.line - hair.peak * np.exp(-((canvas.x / 7) ** 2)) + hair.temples * away**3
    top = step(edge + hair.slope * canvas.x + 0.6 * wave - canvas.y, 4.5)
    volume = max(0.5, hair.volume)
    if long:
        sides = step(np.abs(canvas.x) - (0.93 + 0.02 * wave) * head.outline, 3)
        sides *= step(hair.length + 2 * wave - canvas.y, 8)
        fall = curve(canvas.y, [(-60, 0.8), (-30, 1.0), (0, 1.6), (40, 1.9)])
        outer = np.maximum(head.outline, 0.93 * head.traits.face_width) + volume * fall
        reach = step(hair.length + 2 * wave - canvas.y, 6)
    else:
        sides = step(np.abs(canvas.x) - (0.975 + 0.003 * canvas.y) * head.outline, 3) * step(4 - canvas.y, 16)
        fall = curve(canvas.y, [(-60, 0.8), (-30, 1), (-8, 0.8), (8, 0)])
        outer = head.outline + volume * fall
        reach = step(6 - canvas.y, 6)
    behind = (1 - head.cover) * reach
    mask = np.maximum(np.maximum(top, sides), behind) * step(outer + 0.4 * wave - np.abs(canvas.x), 2)
    return np.asarray(np.clip(mask, 0, 1), np.float32), outer, behind


def _extend(canvas: Canvas, relief: Field, cover: Field) -> Field:
    """Continue the relief beyond the head, so that a turned head keeps the outline of `cover`."""
    weight = cover**4
    beyond = blur(relief * weight, 1.3 * canvas.scale)
    beyond /= blur(weight, 1.3 * canvas.scale) + np.float32(1e-4)
    return relief * weight + beyond * (1 - weight)


def _strands(canvas: Canvas, hair: Hair, rng: np.random.Generator) -> Field:
    """Light and dark of strands that run from the parting down and around the head, or of curls."""
    if hair.waves > 0.75:
        return canvas.noise(rng, 60, 72)
    knots = enlarge(rng.standard_normal((5, 160), np.float32), 640, 40)
    parting = 60 * hair.slope
    around = np.arctan2(canvas.x - parting, canvas.y + 90) / np.pi + 0.5
    along = np.hypot(canvas.x - parting, canvas.y + 90) / 170
    across, down = (around * 639).astype(np.float32), (along * 39).astype(np.float32)
    return look_up(knots, across, down)
