"""A second modality computed from ordinary photos, for trying heterogeneous protocols without their images.

Nothing here is physics. The transform takes away what near-infrared and thermal cameras take away (colour, ambient
shading, fine texture), changes the tones and adds noise, so that a recogniser meets a gap between the modalities. How
wide the real gap is it cannot show: every figure measured on such images is *simulated* and must be called so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ppfr.data.images import Images
from ppfr.data.protocols.heterogeneous import Domain
from ppfr.util.errors import DataError

VERSION = 1
"""Changes whenever the same photo and seed would give another image."""

_CONTRAST_LEVELS = 48.0
"""Grey levels of one local standard deviation, about what it is in a photo of a face."""
_FLOOR = 4.0
"""Grey levels added to the local deviation, so that noise in flat regions is not blown up."""


@dataclass(frozen=True)
class Sensor:
    """How photos are turned into images of a modality; lengths in parts of the image's height, tones in [0, 1].

    `weights` of R, G, B make the luminance; `blur` is the deviation of a Gaussian that smooths it; `window` that of
    the one which weighs local mean and deviation, by which a share `flattening` of the image is normalised; then the
    tones are inverted where `inverted` says so, raised to `gamma`, and noise of deviation `noise` grey levels is added.
    """

    weights: tuple[float, float, float]
    blur: float
    window: float
    flattening: float
    inverted: bool
    gamma: float
    noise: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"weights": list(self.weights)}


SENSORS: dict[Domain, Sensor] = {
    # Silicon behind an infrared-pass filter at 850 nm. Red is the visible neighbour, and skin, which reflects red best,
    # is bright in both. Light scatters in skin, so that pores and wrinkles fade: half a pixel of 112. The lamp sits at
    # the camera: the room's shading goes, here half of it. Some noise, as of an exposure indoors.
    Domain.NIR: Sensor(
        weights=(0.8, 0.15, 0.05), blur=0.005, window=0.15, flattening=0.5, inverted=False, gamma=0.7, noise=4.0
    ),
    # A bolometer has few pixels (a face spans some 60: a pixel and a half of 112), sees little of the light's shading
    # and is noisy. Heat is no inverted photo, but inverting breaks the order of tones as heat does: what was darker
    # than its neighbour, such as an eye, is now brighter.
    Domain.THERMAL: Sensor(
        weights=(0.6, 0.3, 0.1), blur=0.014, window=0.15, flattening=0.7, inverted=True, gamma=1.3, noise=6.0
    ),
}


def simulate(image: Images, domain: Domain, rng: np.random.Generator) -> Images:
    """Turn a photo (H, W, 3) RGB uint8 into an image (H, W) uint8 of NIR or THERMAL; `rng` gives the noise alone.

    Raises DataError for another domain or another kind of image.
    """
    if domain not in SENSORS:
        raise DataError(f"cannot simulate {domain}; expected {' or '.join(SENSORS)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    sensor = SENSORS[domain]
    height = image.shape[0]
    grey = _smooth(image.astype(np.float32) @ np.asarray(sensor.weights, np.float32), sensor.blur * height)
    mean = _smooth(grey, sensor.window * height)
    deviation = np.sqrt(np.maximum(_smooth(grey**2, sensor.window * height) - mean**2, 0))
    flat = 127.5 + _CONTRAST_LEVELS * (grey - mean) / (deviation + _FLOOR)
    tones = np.clip((sensor.flattening * flat + (1 - sensor.flattening) * grey) / 255, 0, 1)
    if sensor.inverted:
        tones = 1 - tones
    noisy = 255 * tones**sensor.gamma + sensor.noise * rng.standard_normal(grey.shape)
    return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)


def _smooth(grey: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.float32)
