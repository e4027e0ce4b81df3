"""A procedural face: a relief with colours, lit, turned and photographed, from a few dozen numbers.

No photograph and no learned model is behind it. A person is a set of `Traits` (the relief's proportions,
skin, hair, eyes, moles); a picture of that person is a `Shot` (pose, light, expression, camera). The relief
is a height field in front of the head's middle plane, shaded with soft Lambert light, cast shadows and a
little sheen, then seen from the shot's angle by following each pixel's ray onto the relief. Lengths are
pixels of the 112 x 112 ArcFace template (InsightFace, five landmarks), the origin lies midway between the
eyes, y points down, z towards the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

Field = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""ArcFace's five landmarks in a 112 x 112 crop: the two eyes, the nose tip, the two mouth corners."""

_LEFT, _TOP, _WIDTH, _HEIGHT = (
    -68,
    -66,
    136,
    140,
)  # the canvas, in template pixels: the crop and a margin to turn
_OVERSAMPLING = 1.3
_LEVELS = 9

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


_FACTORS, _COMMON = 8, 0.85
_LOADINGS = np.random.default_rng(1).standard_normal((100, _FACTORS))
_LOADINGS /= np.linalg.norm(_LOADINGS, axis=1, keepdims=True)


def _trait(mean: float, spread: float) -> Any:
    return field(metadata={"mean": mean, "spread": spread})


@dataclass(frozen=True)
class Traits:
    """What makes one person: each number is drawn from a normal distribution cut at two deviations."""

    # proportions
    eye_distance: float = _trait(17.6, 1.1)
    nose_length: float = _trait(20.5, 2.0)
    mouth_height: float = _trait(40.5, 2.2)
    chin_height: float = _trait(63.0, 3.0)
    face_width: float = _trait(37.0, 1.6)
    forehead_width: float = _trait(0.95, 0.03)
    cheek_width: float = _trait(0.97, 0.03)
    jaw_width: float = _trait(0.81, 0.055)
    chin_width: float = _trait(0.53, 0.06)
    depth: float = _trait(34.0, 3.0)
    # eyes and brows
    eye_length: float = _trait(7.6, 0.7)
    eye_opening: float = _trait(3.2, 0.6)
    eye_tilt: float = _trait(0.5, 0.8)
    eye_peak: float = _trait(0.46, 0.07)
    eye_depth: float = _trait(4.0, 1.2)
    lid_crease: float = _trait(2.0, 0.8)
    iris_size: float = _trait(3.4, 0.2)
    iris_tone: float = _trait(1.1, 1.1)
    eye_bags: float = _trait(0.35, 0.3)
    brow_height: float = _trait(10.0, 1.4)
    brow_thickness: float = _trait(1.9, 0.6)
    brow_length: float = _trait(9.2, 1.2)
    brow_arch: float = _trait(1.6, 1.2)
    brow_tilt: float = _trait(0.0, 1.2)
    brow_density: float = _trait(0.75, 0.2)
    brow_ridge: float = _trait(1.8, 1.2)
    # nose
    nose_height: float = _trait(11.0, 1.8)
    nose_bridge: float = _trait(3.2, 0.5)
    nose_hump: float = _trait(0.4, 1.0)
    nose_tip: float = _trait(4.2, 0.7)
    nose_wings: float = _trait(7.0, 1.0)
    nose_turn: float = _trait(0.0, 1.1)
    # mouth and chin
    mouth_width: float = _trait(13.4, 1.3)
    upper_lip: float = _trait(3.8, 0.95)
    lower_lip: float = _trait(4.9, 1.0)
    cupid_bow: float = _trait(0.9, 0.5)
    mouth_corners: float = _trait(0.6, 0.7)
    lip_colour: float = _trait(0.45, 0.22)
    chin_bump: float = _trait(3.0, 1.2)
    chin_cleft: float = _trait(0.2, 0.5)
    # flesh and age
    cheekbones: float = _trait(2.5, 1.3)
    cheek_hollow: float = _trait(0.8, 1.0)
    folds: float = _trait(0.9, 0.6)
    forehead_bump: float = _trait(1.0, 1.0)
    asymmetry: float = _trait(0.0, 0.5)
    # colour
    melanin: float = _trait(0.34, 0.24)
    redness: float = _trait(0.0, 0.05)
    flush: float = _trait(0.5, 0.25)
    blotches: float = _trait(0.03, 0.015)
    freckles: float = _trait(-0.3, 0.7)
    moles: float = _trait(0.4, 0.8)
    beard: float = _trait(-0.3, 0.4)
    # hair and ears
    hair_tone: float = _trait(1.1, 1.0)
    hairline: float = _trait(-37.0, 2.0)
    hair_length: float = _trait(-5.0, 35.0)
    hair_waves: float = _trait(0.5, 0.4)
    ear_size: float = _trait(9.5, 1.0)
    ear_spread: float = _trait(2.6, 0.9)


@dataclass(frozen=True)
class Hair:
    """A person's hair on one occasion: its own tendency, differently cut and combed."""

    tone: float
    line: float
    peak: float
    temples: float
    slope: float
    volume: float
    length: float
    waves: float


@dataclass(frozen=True)
class Shot:
    """What changes from picture to picture of one person; angles in radians."""

    yaw: float
    pitch: float
    roll: float
    smile: float
    mouth_open: float
    eyelids: float
    brows: float
    gaze: tuple[float, float]
    light: Points  # towards the lamp, unit length
    lamp: float  # its share of all light
    light_colour: Points
    shadow: float
    sheen: float
    exposure: float
    white_balance: Points
    contrast: float
    blur: float
    noise: float
    misalignment: Points  # of the five landmarks, in pixels
    glasses: float  # 0 for none, else the darkness of the frame
    stubble: float
    flush: float


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draw a person.

    As in people, traits go together: a few factors carry most of each trait's variance, the rest is its own. Without
    them no two of so many independent numbers would ever resemble each other, and recognition would be trivial.
    """
    traits = fields(Traits)
    own = rng.standard_normal(len(traits))
    common = _LOADINGS[: len(traits)] @ rng.standard_normal(_FACTORS)
    drawn = np.clip(np.sqrt(_COMMON) * common + np.sqrt(1 - _COMMON) * own, -2, 2)
    spread = {trait.name: trait.metadata["spread"] * value for trait, value in zip(traits, drawn, strict=True)}
    return Traits(**{trait.name: trait.metadata["mean"] + float(spread[trait.name]) for trait in traits})


def draw_hair(traits: Traits, rng: np.random.Generator) -> Hair:
    """Draw one occasion's hair for a person."""

    def near(tendency: float, spread: float) -> float:
        return tendency + spread * float(np.clip(rng.standard_normal(), -2, 2))

    return Hair(
        tone=near(traits.hair_tone, 0.3),
        line=near(traits.hairline, 3.0),
        peak=near(0.0, 2.0),
        temples=near(13.0, 4.5),
        slope=near(0.0, 0.1),
        volume=near(5.0, 2.2),
        length=near(traits.hair_length, 25.0),
        waves=near(traits.hair_waves, 0.2),
    )


def draw_shot(rng: np.random.Generator) -> Shot:
    """Draw the circumstances of one picture."""

    def normal(spread: float, most: float = 2.0) -> float:
        return spread * float(np.clip(rng.standard_normal(), -most, most))

    azimuth, elevation = normal(0.95, 1.5), 0.35 + normal(0.4)
    light = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    return Shot(
        yaw=normal(0.23),
        pitch=normal(0.15),
        roll=normal(0.03),
        smile=float(np.clip(rng.normal(0.3, 0.5), -0.4, 1.1)),
        mouth_open=max(0.0, float(rng.normal(-0.15, 0.45))),
        eyelids=float(np.clip(rng.normal(1.0, 0.2), 0.25, 1.3)),
        brows=normal(1.0),
        gaze=(normal(0.9), normal(0.4)),
        light=light,
        lamp=float(rng.uniform(0.45, 0.92)),
        light_colour=1 + np.clip(rng.normal(0, 0.07, 3), -0.15, 0.15),
        shadow=float(rng.uniform(0.2, 0.8)),
        sheen=float(rng.uniform(0.0, 0.35)),
        exposure=float(np.exp(normal(0.24))),
        white_balance=np.exp(np.clip(rng.normal(0, 0.06, 3), -0.12, 0.12)),
        contrast=float(np.exp(normal(0.12))),
        blur=max(0.0, float(rng.normal(0.45, 0.5))),
        noise=float(rng.uniform(0.0, 0.035)),
        misalignment=np.clip(rng.normal(0, 1.3, (5, 2)), -2.6, 2.6),
        glasses=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.16 else 0.0,
        stubble=max(0.0, normal(0.2)),
        flush=normal(0.25),
    )


class _Canvas:
    """Coordinates of the drawing, `scale` pixels to a template pixel."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.width, self.height = round(_WIDTH * scale), round(_HEIGHT * scale)
        self.x = ((np.arange(self.width, dtype=np.float32) + 0.5) / scale + _LEFT)[None, :]
        self.y = ((np.arange(self.height, dtype=np.float32) + 0.5) / scale + _TOP)[:, None]

    def bump(self, image: Field, height: float, x: float, y: float, sx: float, sy: float) -> None:
        """Add a Gaussian hill (a hollow if `height` is below 0) to `image` in place."""
        reach = 3.3
        columns = self._span(x - reach * sx - _LEFT, x + reach * sx - _LEFT)
        rows = self._span(y - reach * sy - _TOP, y + reach * sy - _TOP)
        across = np.exp(-0.5 * ((self.x[:, columns] - np.float32(x)) / np.float32(sx)) ** 2)
        down = np.exp(-0.5 * ((self.y[rows] - np.float32(y)) / np.float32(sy)) ** 2)
        image[rows, columns] += (np.float32(height) * down) * across

    def _span(self, low: float, high: float) -> slice:
        return slice(max(0, int(low * self.scale)), max(0, int(high * self.scale) + 1))

    def pixels(self, points: Points) -> Points:
        """Canvas pixel coordinates (centres at whole numbers) of points (n, 2)."""
        return (points - (_LEFT, _TOP)) * self.scale - 0.5

    def noise(self, rng: np.random.Generator, rows: int, columns: int) -> Field:
        """Smooth noise of unit deviation with so many knots; the same picture at every scale."""
        knots = rng.standard_normal((rows, columns), np.float32)
        return _enlarge(knots, self.width, self.height)

    def sample(self, image: Field, x: float, y: float) -> float:
        column, row = self.pixels(np.array([[x, y]]))[0].round().astype(int)
        return float(image[np.clip(row, 0, self.height - 1), np.clip(column, 0, self.width - 1)])


def _blur(image: Field, deviation: float) -> Field:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), deviation), np.float32)


def _enlarge(image: Field, width: int, height: int) -> Field:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _look_up(image: cv2.typing.MatLike, columns: Field, rows: Field) -> Field:
    """`image` between its pixels at (columns, rows), and at its border beyond it."""
    seen = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.float32)


def _step(value: Field, softness: float) -> Field:
    """0 below 0, 1 above `softness`, smooth between."""
    t = np.clip(value / np.float32(softness), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _curve(y: Field, knots: Sequence[tuple[float, float]]) -> Field:
    """A smooth curve through (y, value) knots that does not overshoot, constant beyond them."""
    at, value = zip(*knots, strict=True)
    return np.asarray(PchipInterpolator(at, value)(np.clip(y, at[0], at[-1])), np.float32)


def _mix(colours: Points, tone: float) -> Points:
    """Between neighbouring rows of `colours`."""
    place = float(np.clip(tone, 0, len(colours) - 1.001))
    low = int(place)
    return np.asarray(colours[low] + (place - low) * (colours[low + 1] - colours[low]))


def _paint(
    canvas: _Canvas, image: Field, points: Points, colour: Points, opacity: float = 1.0, soft: float = 0.0
) -> None:
    """Blend a filled polygon into `image` in place; `soft` blurs its edge by so many template pixels."""
    _blend(canvas, image, canvas.pixels(points), colour, opacity, soft, None)


def _stroke(
    canvas: _Canvas,
    image: Field,
    points: Points,
    colour: Points,
    width: float,
    opacity: float = 1.0,
    soft: float = 0.0,
) -> None:
    """Blend an open line of so many template pixels' width into `image` in place."""
    _blend(canvas, image, canvas.pixels(points), colour, opacity, soft, width * canvas.scale)


def _blend(
    canvas: _Canvas,
    image: Field,
    pixels: Points,
    colour: Points,
    opacity: float,
    soft: float,
    width: float | None,
) -> None:
    margin = int((width or 0) / 2 + 3 * soft * canvas.scale) + 2
    low = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + margin + 1, (canvas.width, canvas.height))
    if (high <= low).any():
        return
    fine = 1 if width is None else 4  # lines have whole widths: they are drawn four times finer, then averaged
    shape = int(high[1] - low[1]), int(high[0] - low[0])
    mask = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    inside = [np.round(((pixels - low + 0.5) * fine - 0.5) * 16).astype(np.int32)]
    if width is None:
        cv2.fillPoly(mask, inside, 255, lineType=cv2.LINE_AA, shift=4)
    else:
        cv2.polylines(mask, inside, False, 255, max(1, round(width * fine)), lineType=cv2.LINE_8, shift=4)
    small = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_AREA)
    cover = np.asarray(small, np.float32) * np.float32(opacity / 255)
    if soft:
        cover = _blur(cover, soft * canvas.scale)
    part = image[low[1] : high[1], low[0] : high[0]]
    part += cover[:, :, None] * (np.asarray(colour, np.float32) - part)


class Person:
    """One person's head; `rng` places moles and freckles. It must `wear` some hair before it is photographed."""

    def __init__(self, traits: Traits, rng: np.random.Generator, size: int = 112) -> None:
        self.traits = traits
        self.size = size
        self.canvas = _Canvas(_OVERSAMPLING * size / 112)
        self.skin = self._skin_tone()
        self.outline = self._outline()
        relief, cover = self._head()
        self._bald = relief, cover, self._skin(rng), self._beard(rng)

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
        squares = _curve(self.canvas.y, [(y, half**2) for y, half in knots])
        return np.maximum(w * np.sqrt(np.maximum(squares, 0)), np.float32(0.01))

    def _head(self) -> tuple[Field, Field]:
        """The relief (H, W) and how much of each pixel the head with neck and ears covers."""
        t, canvas = self.traits, self.canvas
        chin = t.chin_height
        profile = _curve(
            canvas.y,
            [(-66, 0.55), (-45, 0.82), (-25, 0.95), (0, 0.97), (25, 1.0), (0.8 * chin, 0.97), (chin, 0.84)],
        )
        across = np.abs(canvas.x) / self.outline
        # no steeper at its edge than the largest turn: the silhouette stays the outline and needs no search
        dome = np.clip(1 - across**2.2, 0, 1)
        face = np.where(canvas.y < 1.05 * chin, t.depth * profile * dome, 0).astype(np.float32)
        cover = _step(self.outline - np.abs(canvas.x), 1.2) * _step(1.03 * chin - canvas.y, 1.5)

        neck_width = 0.66 * t.face_width
        bow = np.sqrt(np.clip(1 - (canvas.x / neck_width) ** 2, 0, 1))
        neck = (0.42 * t.depth * bow * _step(canvas.y - 30, 12)).astype(np.float32)
        neck_cover = _step(neck_width - np.abs(canvas.x), 2) * _step(canvas.y - 32, 8)

        ears = sum(self._ear(side) for side in (-1, 1))
        ear_cover = _step(np.asarray(ears, np.float32) - 0.25, 0.25)
        relief = np.maximum(np.maximum(face, neck), 5 * np.asarray(ears, np.float32) * (1 - cover))
        relief += self._features() * cover
        covered = np.maximum(np.maximum(cover, neck_cover), ear_cover)
        return _blur(relief, 0.7 * canvas.scale), covered

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
        ridge = _curve(
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
        width = _curve(canvas.y, [(-12, 1.5 * t.nose_bridge), (2, t.nose_bridge), (tip, 1.35 * t.nose_bridge)])
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
        tone *= 1 - 0.35 * _step(canvas.y - 0.99 * t.chin_height, 6)
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
        _paint(self.canvas, image, circle, colour, opacity, soft=0.25)

    def _beard(self, rng: np.random.Generator) -> Field:
        """How densely a beard would grow, 0..1 (H, W)."""
        t, canvas = self.traits, self.canvas
        line = 0.98 * t.mouth_height - 36 * _step(np.abs(canvas.x) / self.outline - 0.42, 0.55)
        lower = _step(canvas.y - line, 8) * _step(np.abs(canvas.x) - t.mouth_width - 1, 6)
        lower = np.maximum(lower, _step(canvas.y - t.mouth_height - t.lower_lip - 3, 6))
        lip = np.zeros_like(lower)
        canvas.bump(lip, 1.2, 0, 0.5 * (t.nose_length + t.mouth_height) + 3.2, 11, 2.6)
        lower = np.clip(np.maximum(lower, lip), 0, 1) * _step(1.04 * t.chin_height - canvas.y, 4)
        strands = 1 + 0.35 * canvas.noise(rng, 80, 110)
        return np.asarray(np.clip(lower * strands, 0, 1), np.float32)

    def wear(self, hair: Hair, rng: np.random.Generator) -> None:
        """Give the person this hair in place of any other; `rng` places its strands."""
        t, canvas = self.traits, self.canvas
        self.hair_colour = _mix(_HAIR, hair.tone)
        wave = canvas.noise(rng, 6, 9) * (1 + 3 * max(0.0, hair.waves))
        mask, outer, behind = self._haircut(hair, wave)
        streaks = self._strands(hair, rng)
        colour = np.maximum(self.hair_colour * (1 + 0.22 * streaks[:, :, None]), 0.004).astype(np.float32)
        relief, cover, skin, beard = self._bald
        share = mask / np.maximum(mask + (1 - mask) * cover, np.float32(1e-4))
        self.reflectance = skin + share[:, :, None] * (colour - skin)
        bow = 0.3 * t.depth * np.sqrt(np.clip(1 - (canvas.x / (outer + 1)) ** 2, 0, 1))
        thickness = mask * (np.maximum(bow - relief, 0) + np.float32(2.0))
        relief = relief + _blur(thickness, 1.8 * canvas.scale) + 0.35 * mask * streaks
        cover = np.maximum(mask, 1 - (1 - cover) * (1 - behind * mask))
        self.beard = beard * (1 - mask)
        self.relief = self._extend(relief, cover)
        self._layers = cv2.merge([cover, 1 - np.float32(0.6) * mask])

    def _haircut(self, hair: Hair, wave: Field) -> tuple[Field, Field, Field]:
        """Where hair is, 0..1; half its outline's width at each row; and the part of it behind the head."""
        canvas, long = self.canvas, hair.length > 12
        away = np.abs(canvas.x) / self.traits.face_width
        edge = hair.line - hair.peak * np.exp(-((canvas.x / 7) ** 2)) + hair.temples * away**3
        top = _step(edge + hair.slope * canvas.x + 0.6 * wave - canvas.y, 4.5)
        volume = max(0.5, hair.volume)
        if long:
            sides = _step(np.abs(canvas.x) - (0.93 + 0.02 * wave) * self.outline, 3)
            sides *= _step(hair.length + 2 * wave - canvas.y, 8)
            fall = _curve(canvas.y, [(-60, 0.8), (-30, 1.0), (0, 1.6), (40, 1.9)])
            outer = np.maximum(self.outline, 0.93 * self.traits.face_width) + volume * fall
            reach = _step(hair.length + 2 * wave - canvas.y, 6)
        else:
            sides = _step(np.abs(canvas.x) - (0.975 + 0.003 * canvas.y) * self.outline, 3) * _step(4 - canvas.y, 16)
            fall = _curve(canvas.y, [(-60, 0.8), (-30, 1), (-8, 0.8), (8, 0)])
            outer = self.outline + volume * fall
            reach = _step(6 - canvas.y, 6)
        behind = (1 - self._bald[1]) * reach
        mask = np.maximum(np.maximum(top, sides), behind) * _step(outer + 0.4 * wave - np.abs(canvas.x), 2)
        return np.asarray(np.clip(mask, 0, 1), np.float32), outer, behind

    def _extend(self, relief: Field, cover: Field) -> Field:
        """Continue the relief beyond the head, so that a turned head keeps the outline of `cover`."""
        weight = cover**4
        beyond = _blur(relief * weight, 1.3 * self.canvas.scale)
        beyond /= _blur(weight, 1.3 * self.canvas.scale) + np.float32(1e-4)
        return relief * weight + beyond * (1 - weight)

    def _strands(self, hair: Hair, rng: np.random.Generator) -> Field:
        """Light and dark of strands that run from the parting down and around the head, or of curls."""
        canvas = self.canvas
        if hair.waves > 0.75:
            return canvas.noise(rng, 60, 72)
        knots = _enlarge(rng.standard_normal((5, 160), np.float32), 640, 40)
        parting = 60 * hair.slope
        around = np.arctan2(canvas.x - parting, canvas.y + 90) / np.pi + 0.5
        along = np.hypot(canvas.x - parting, canvas.y + 90) / 170
        across, down = (around * 639).astype(np.float32), (along * 39).astype(np.float32)
        return _look_up(knots, across, down)

    # ------------------------------------------------------------------ one picture

    def photograph(self, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """One picture (size, size, 3) RGB uint8; `rng` draws the background and the sensor's noise."""
        relief = self._expression(shot)
        reflectance = self._make_up(shot)
        columns, rows = self._rays(relief, shot)

        def seen(layers: cv2.typing.MatLike) -> Field:
            return _look_up(layers, columns, rows)

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
            bump(-(max(0.0, fold)), side * (t.nose_wings + 3.5), t.nose_length + 6, 1.5, 5)
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
        """The reflectance with everything that moves: beard of the day, brows, eyes, mouth, nostrils."""
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
        _paint(self.canvas, image, np.stack([x, y], axis=1), 0.12 * self.skin, 0.8, soft=0.5)

    def _brow(self, image: Field, side: int, shot: Shot) -> None:
        t = self.traits
        s = np.linspace(0, 1, 12)
        x = t.eye_distance + t.brow_length * (1.9 * s - 0.95) + 0.6
        lift = t.brow_height + 0.9 * shot.brows + t.brow_tilt * (1 - 2 * s) * -1 + 0.4 * side * t.asymmetry
        y = -(lift + t.brow_arch * np.sin(np.pi * np.clip(1.15 * s, 0, 1)) ** 1.5 - 1.5 * s**3)
        half = t.brow_thickness * np.clip(np.minimum(0.55 + 2.2 * s, 1.35 * (1.08 - s)), 0.12, 1)
        shape = np.concatenate([np.stack([x, y - half], 1), np.stack([x, y + half], 1)[::-1]])
        colour = 0.75 * np.minimum(self.hair_colour, 0.55 * self.skin)
        _paint(
            self.canvas,
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
        _stroke(canvas, image, crease, 0.45 * self.skin, 0.8, 0.55, soft=0.35)
        ball = np.concatenate([upper, lower[::-1]])
        inside = np.zeros((*image.shape[:2], 1), np.float32)
        _paint(canvas, inside, ball, np.ones(1))
        rows, columns = self._around(ball)
        eye = np.empty(image[rows, columns].shape, np.float32)
        eye[:] = np.array([0.50, 0.46, 0.44])
        full = image[rows, columns]
        frame = _Window(canvas, rows, columns)
        iris_at = np.array([side * t.eye_distance + shot.gaze[0], -0.35 + shot.gaze[1]])
        colour = _mix(_IRIS, t.iris_tone)
        for radius, tone in (
            (1.0, 0.35 * colour),
            (0.86, colour),
            (0.6, 1.35 * colour),
            (0.42, 0.02 + 0 * colour),
        ):
            frame.disc(eye, iris_at, radius * t.iris_size, tone)
        shade = np.clip((canvas.y[rows] - upper[:, 1].min()) / 2.6 + 0.35, 0.35, 1)[:, :, None]
        full += inside[rows, columns] * (eye * shade - full)
        _stroke(canvas, image, upper, dark, 1.0, 0.9, soft=0.2)
        _stroke(canvas, image, lower[2:], 0.4 * self.skin, 0.5, 0.5, soft=0.2)

    def _around(self, points: Points) -> tuple[slice, slice]:
        pixels = self.canvas.pixels(points)
        low, high = np.floor(pixels.min(axis=0)).astype(int) - 2, np.ceil(pixels.max(axis=0)).astype(int) + 3
        return slice(low[1], high[1]), slice(low[0], high[0])

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
        _paint(canvas, image, whole, red, 0.8, soft=0.45)
        _paint(canvas, image, np.concatenate([np.stack([x, lip_top], 1), line[::-1]]), 0.8 * red, 0.5, soft=0.3)
        if shot.mouth_open > 0.12:
            _paint(
                canvas,
                image,
                np.concatenate([line, under[::-1]]),
                np.array([0.04, 0.012, 0.012]),
                1.0,
                soft=0.15,
            )
            teeth = np.minimum(seam + 2.6, seam + 0.75 * gape)
            row = slice(4, -4)
            shape = np.concatenate([line[row], np.stack([x, teeth], 1)[row][::-1]])
            _paint(canvas, image, shape, np.array([0.50, 0.47, 0.42]), 0.9, soft=0.25)
        _stroke(canvas, image, line, 0.22 * red, 0.7, 0.75, soft=0.25)

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
        return _enlarge(_blur(np.minimum(shade, 1), 0.8 * scale), self.canvas.width, self.canvas.height)

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
            _stroke(canvas, image, rim, colour, 1.3, 0.9, soft=0.2)
            temple = np.array([[side * (t.eye_distance + 12), 0.0], [side * (t.face_width + 3), -1.0]])
            _stroke(canvas, image, temple, colour, 1.2, 0.85, soft=0.2)
        bridge = np.array([[-t.eye_distance + 11, 1.0], [0, -0.8], [t.eye_distance - 11, 1.0]])
        _stroke(canvas, image, bridge, colour, 1.2, 0.9, soft=0.2)

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
            for axis, corner in enumerate((_LEFT, _TOP))
        ]
        step = canvas.scale * lean / squeeze
        return self._meet(relief, foot[0].astype(np.float32), foot[1].astype(np.float32), step)

    def _meet(self, relief: Field, columns: Field, rows: Field, step: Points) -> tuple[Field, Field]:
        """Follow rays to the relief from the front; at height z they are over (columns, rows) - z * step."""
        size = self.size
        levels = np.linspace(float(relief.max()) + 0.01, 0, _LEVELS, dtype=np.float32)[:, None, None]
        over = columns - levels * np.float32(step[0]), rows - levels * np.float32(step[1])
        below = _look_up(relief, over[0].reshape(-1, size), over[1].reshape(-1, size))
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


class _Window:
    """Discs in a part of the canvas."""

    def __init__(self, canvas: _Canvas, rows: slice, columns: slice) -> None:
        self.x, self.y, self.soft = canvas.x[:, columns], canvas.y[rows], 1 / canvas.scale

    def disc(self, image: Field, centre: Points, radius: float, colour: Points) -> None:
        distance = np.hypot(self.x - np.float32(centre[0]), self.y - np.float32(centre[1]))
        cover = np.clip((np.float32(radius) - distance) / np.float32(self.soft) + 0.5, 0, 1)[:, :, None]
        image += cover * (np.asarray(colour, np.float32) - image)


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
    return np.clip(_enlarge(knots, size, size), 0, 1)


def _develop(linear: Field, shot: Shot, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blur, exposure, white balance, tone curve and noise of a camera."""
    size = linear.shape[0]
    if shot.blur > 0.2:
        linear = _blur(linear, shot.blur * size / 112)
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
