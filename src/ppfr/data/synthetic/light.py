"""Light on a relief: soft light from all round, and one lamp with its shadows and a little sheen."""

from __future__ import annotations

import cv2
import numpy as np

from ppfr.data.synthetic.canvas import Canvas, Field, blur, enlarge
from ppfr.data.synthetic.traits import Points, Shot


def cast_shadow(canvas: Canvas, relief: Field, light: Points) -> Field:
    """How far (H, W) each pixel lies in the shadow of something nearer to the lamp, 0..1."""
    flat = float(np.hypot(light[0], light[1]))
    if flat < 0.15:
        return np.zeros_like(relief)
    scale = 0.5 * canvas.scale
    size = canvas.width // 2, canvas.height // 2
    small = np.asarray(cv2.resize(relief, size, interpolation=cv2.INTER_AREA), np.float32)
    shade = np.zeros_like(small)
    for distance in (3, 6, 10, 15):
        across, down = -distance * scale * light[:2] / flat
        move = np.array([[1, 0, across], [0, 1, down]])
        ahead = np.asarray(cv2.warpAffine(small, move, size, borderMode=cv2.BORDER_REPLICATE), np.float32)
        excess = ahead - small - np.float32(distance * light[2] / flat)
        shade = np.maximum(shade, np.float32(0.4) * excess)
    return enlarge(blur(np.minimum(shade, 1), 0.8 * scale), canvas.width, canvas.height)


def shade(reflectance: Field, shape: Field, gloss: Field, shot: Shot) -> Field:
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
