"""The canvas that synthetic faces are drawn on, and the few curves and brushes that drawing them takes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ppfr.data.synthetic.traits import Points

Field = npt.NDArray[np.float32]

# in template pixels from between the eyes: the crop, and a margin to turn
LEFT, TOP, WIDTH, HEIGHT = -68, -66, 136, 140


class Canvas:
    """What a head is drawn on: `scale` pixels to a template pixel, images (height, width) or (height, width, C)."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.width, self.height = round(WIDTH * scale), round(HEIGHT * scale)
        self.x = ((np.arange(self.width, dtype=np.float32) + 0.5) / scale + LEFT)[None, :]
        self.y = ((np.arange(self.height, dtype=np.float32) + 0.5) / scale + TOP)[:, None]

    def bump(self, image: Field, height: float, x: float, y: float, sx: float, sy: float) -> None:
        """Add a Gaussian hill (a hollow if `height` is below 0) to `image` in place."""
        reach = 3.3
        columns = self._span(x - reach * sx - LEFT, x + reach * sx - LEFT)
        rows = self._span(y - reach * sy - TOP, y + reach * sy - TOP)
        across = np.exp(-0.5 * ((self.x[:, columns] - np.float32(x)) / np.float32(sx)) ** 2)
        down = np.exp(-0.5 * ((self.y[rows] - np.float32(y)) / np.float32(sy)) ** 2)
        image[rows, columns] += (np.float32(height) * down) * across

    def _span(self, low: float, high: float) -> slice:
        return slice(max(0, int(low * self.scale)), max(0, int(high * self.scale) + 1))

    def pixels(self, points: Points) -> Points:
        """Canvas pixel coordinates (centres at whole numbers) of points (n, 2)."""
        return (points - (LEFT, TOP)) * self.scale - 0.5

    def noise(self, rng: np.random.Generator, rows: int, columns: int) -> Field:
        """Smooth noise of unit deviation with so many knots; the same picture at every scale."""
        knots = rng.standard_normal((rows, columns), np.float32)
        return enlarge(knots, self.width, self.height)

    def sample(self, image: Field, x: float, y: float) -> float:
        column, row = self.pixels(np.array([[x, y]]))[0].round().astype(int)
        return float(image[np.clip(row, 0, self.height - 1), np.clip(column, 0, self.width - 1)])

    def paint(self, image: Field, points: Points, colour: Points, opacity: float = 1.0, soft: float = 0.0) -> None:
        """Blend a filled polygon into `image` in place; `soft` blurs its edge by so many template pixels."""
        self._blend(image, self.pixels(points), colour, opacity, soft, None)

    def stroke(
        self,
        image: Field,
        points: Points,
        colour: Points,
        width: float,
        opacity: float = 1.0,
        soft: float = 0.0,
    ) -> None:
        """Blend an open line of so many template pixels' width into `image` in place."""
        self._blend(image, self.pixels(points), colour, opacity, soft, width * self.scale)

    def _blend(
        self,
        image: Field,
        pixels: Points,
        colour: Points,
        opacity: float,
        soft: float,
        width: float | None,
    ) -> None:
        margin = int((width or 0) / 2 + 3 * soft * self.scale) + 2
        low = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - margin, 0)
        high = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + margin + 1, (self.width, self.height))
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
            cover = blur(cover, soft * self.scale)
        part = image[low[1] : high[1], low[0] : high[0]]
        part += cover[:, :, None] * (np.asarray(colour, np.float32) - part)

    def spot(self, image: Field, x: float, y: float, radius: float, colour: Points, opacity: float) -> None:
        """Paint a small round spot at (x, y) into `image` in place."""
        angle = np.linspace(0, 2 * np.pi, 9)[:-1]
        circle = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
        self.paint(image, circle, colour, opacity, soft=0.25)

    def disc(
        self, image: Field, corner: tuple[int, int], centre: Points, rings: Sequence[tuple[float, Points]]
    ) -> None:
        """Fill concentric discs, (radius, colour) from the outside in, into the part of the canvas at `corner`."""
        rows, columns = (slice(low, low + length) for low, length in zip(corner, image.shape, strict=False))
        distance = np.hypot(self.x[:, columns] - np.float32(centre[0]), self.y[rows] - np.float32(centre[1]))
        for radius, colour in rings:
            cover = np.clip((np.float32(radius) - distance) * np.float32(self.scale) + 0.5, 0, 1)[:, :, None]
            image += cover * (np.asarray(colour, np.float32) - image)

    def around(self, points: Points) -> tuple[slice, slice]:
        """Rows and columns of the canvas that hold `points` (n, 2) with a little margin."""
        pixels = self.pixels(points)
        low, high = np.floor(pixels.min(axis=0)).astype(int) - 2, np.ceil(pixels.max(axis=0)).astype(int) + 3
        return slice(low[1], high[1]), slice(low[0], high[0])


def blur(image: Field, deviation: float) -> Field:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), deviation), np.float32)


def enlarge(image: Field, width: int, height: int) -> Field:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def look_up(image: cv2.typing.MatLike, columns: Field, rows: Field) -> Field:
    """`image` between its pixels at (columns, rows), and at its border beyond it."""
    seen = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.float32)


def step(value: Field, softness: float) -> Field:
    """0 below 0, 1 above `softness`, smooth between."""
    t = np.clip(value / np.float32(softness), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def curve(y: Field, knots: Sequence[tuple[float, float]]) -> Field:
    """A smooth curve through (y, value) knots that does not overshoot, constant beyond them."""
    from scipy.interpolate import PchipInterpolator  # slow to import, and only drawing needs it

    at, value = zip(*knots, strict=True)
    return np.asarray(PchipInterpolator(at, value)(np.clip(y, at[0], at[-1])), np.float32)


def mix(colours: Points, tone: float) -> Points:
    """Between neighbouring rows of `colours`."""
    place = float(np.clip(tone, 0, len(colours) - 1.001))
    low = int(place)
    return np.asarray(colours[low] + (place - low) * (colours[low + 1] - colours[low]))
