"""One photograph to its aligned faces: all that decides about a crop, whatever came before and whoever does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import simplejpeg

from ppfr.data.detection.align import align, template
from ppfr.data.detection.detector import Detector
from ppfr.data.preparation.choosing import Choice, Chooser, Largest, Refusal
from ppfr.data.preparation.photographs import Photograph, Photographs
from ppfr.util.errors import DataError

SMALLEST_FACE = 40.0
_QUALITY = 95


class Crop(NamedTuple):
    """An aligned face as JPEG, and which of the photograph's faces it is."""

    jpeg: bytes
    choice: Choice


class Outcome(NamedTuple):
    """What came of one photograph."""

    crops: Sequence[Crop]
    refused: Sequence[Refusal]


@dataclass(frozen=True)
class Cutter:
    """Cuts the faces that `choose` wants out of photographs, as crops of `size` 112 or 128.

    Faces whose box is narrower or lower than `smallest` pixels are refused. Raises DataError for another size.
    """

    choose: Chooser = field(default_factory=Largest)
    size: int = 112
    smallest: float = SMALLEST_FACE

    def __post_init__(self) -> None:
        template(self.size)

    def __call__(self, detector: Detector, photos: Photographs, photo: Photograph) -> Outcome:
        """Read a photograph, find its faces and cut out those that are wanted."""
        try:
            image = photos.read(photo)
            faces = detector.detect(image)
        except DataError as error:
            return Outcome([], [Refusal("unreadable", str(error))])
        except cv2.error as error:
            return Outcome([], [Refusal("detector failed", str(error.err or error))])
        chosen, refused = self.choose(photo, faces, (image.shape[1], image.shape[0]))
        crops = []
        for choice in chosen:
            if choice.face.size < self.smallest:
                refused.append(Refusal("face too small", f"{choice.face.size:.0f} pixels"))
                continue
            crop = align(image, choice.face.landmarks, self.size)
            # colours of every pixel: methods that transform the chroma planes would see what four pixels share
            crops.append(Crop(simplejpeg.encode_jpeg(crop, _QUALITY, "RGB", "444"), choice))
        return Outcome(crops, refused)
