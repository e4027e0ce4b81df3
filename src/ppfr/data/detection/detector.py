"""What every face detector gives, and what their outputs have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppfr.data.detection.align import Floats
from ppfr.data.faceset import Indices
from ppfr.data.images import Images


@dataclass(frozen=True)
class Detection:
    """A face in a photograph, in its pixels.

    `box` (4) is left, top, right, bottom; `score` is in [0, 1]; `landmarks` (5, 2) are eyes, tip of the nose and
    corners of the mouth as (x, y), from the left of the image to its right for an upright face.
    """

    box: Floats
    score: float
    landmarks: Floats

    @property
    def size(self) -> float:
        """The shorter side of the box."""
        return float((self.box[2:] - self.box[:2]).min())

    @property
    def area(self) -> float:
        return float((self.box[2:] - self.box[:2]).prod())


class Detector(ABC):
    """Finds faces. An object is for one thread at a time."""

    name: str
    """As in `ppfr prepare --detector`."""

    model: str
    """Hexadecimal SHA-256 of the weights."""

    @abstractmethod
    def detect(self, image: Images) -> list[Detection]:
        """The faces of a photograph (H, W, 3) RGB uint8, the surest first."""


def overlaps(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of a box (4) with boxes (N, 4), as (N)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = (box[2:] - box[:2]).prod() + areas - shared
    return np.asarray(shared / np.maximum(union, 1e-12), np.float64)


def suppress(boxes: Floats, scores: Floats, most_overlap: float) -> Indices:
    """Non-maximum suppression: rows of boxes (N, 4), the surest first, none overlapping a surer one by more."""
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        kept.append(left[0])
        left = left[1:][overlaps(boxes[left[0]], boxes[left[1:]]) <= most_overlap]
    return np.array(kept, np.int64)


def distinct(faces: Sequence[Detection], most_overlap: float) -> list[Detection]:
    """Faces, the surest first, without those that overlap a surer one by more than `most_overlap`."""
    if not faces:
        return []
    kept = suppress(np.stack([face.box for face in faces]), np.array([face.score for face in faces]), most_overlap)
    return [faces[row] for row in kept.tolist()]
