"""Detection in several passes: over the whole photograph, then over each face turned upright and mirrored."""

from __future__ import annotations

from abc import abstractmethod

import cv2
import numpy as np

from ppfr.data.detection.align import Floats, inverted, moved, similarity, template, warp
from ppfr.data.detection.detector import Detection, Detector, distinct
from ppfr.data.images import Images

SCORE = 0.6
"""Least score, in any pass, of a face that is reported."""

CANDIDATE_SCORE = 0.4
"""Least score in the first pass: a later pass, which sees the face better, may raise it."""

MOST_OVERLAP = 0.4
LEAST_SIDE = 32

# longest sides of the image in the first pass; the second is for photographs half as large again: the networks learned
# faces of some 10 to 300 pixels
_SIDES = (640, 1280)
# the landmarks found in a head tilted by 45 degrees turn it upright by half of that; the next pass does the rest
_UPRIGHT_PASSES = 2
# the patch: the crop's template twice as large, with room around it, because the networks learned faces in scenes
_UPRIGHT = 2.0
_UPRIGHT_SIZE = 320
# landmarks farther from those of the first pass, in eye distances, belong to another face
_FARTHEST = 0.5
_EXPECTED = (template() - 56) * _UPRIGHT + _UPRIGHT_SIZE / 2
_EYE_DISTANCE = float(np.linalg.norm(_EXPECTED[1] - _EXPECTED[0]))
_SIDEWAYS = [np.array([[0.5, -sign * 0.75**0.5], [sign * 0.75**0.5, 0.5]]) for sign in (1, -1)]
"""Turns by 60 degrees to either side."""
_MIRRORED = [1, 0, 2, 4, 3]


class MultiPassDetector(Detector):
    """Runs a network, `detect_once`, in several passes.

    The first pass covers the whole photograph, with its longest side at most 640 pixels (larger ones also at 1280).
    Then each face is turned upright by its landmarks, brought to one size and detected as it is and mirrored; the mean
    of both landmarks is better than either. This is repeated once with the new landmarks. The later passes are ours:
    without them such networks put the landmarks of tilted heads up to a fifth of the eye distance off.
    """

    @abstractmethod
    def detect_once(self, image: Images) -> list[Detection]:
        """The faces that the network finds in an image (H, W, 3) RGB in one pass; both sides are at least 32 pixels."""

    def detect(self, image: Images) -> list[Detection]:
        """The faces of a photograph (H, W, 3) RGB uint8, the surest first."""
        sides = [side for side in _SIDES if side == _SIDES[0] or max(image.shape[:2]) > 0.75 * side]
        first = distinct([face for side in sides for face in self._reduced(image, side)], MOST_OVERLAP)
        seen = [self._refined(image, face) for face in first]
        return distinct([face for face in seen if face.score >= SCORE], MOST_OVERLAP)

    def _reduced(self, image: Images, side: int) -> list[Detection]:
        """The faces of an image, seen with its longest side at most `side`."""
        height, width = image.shape[:2]
        scale = min(1.0, side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        back = np.array([width / size[0], height / size[1]])
        if scale < 1:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        below, beside = max(0, LEAST_SIDE - size[1]), max(0, LEAST_SIDE - size[0])
        if below or beside:
            image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_CONSTANT), np.uint8)
        return [
            Detection(face.box * np.tile(back, 2), face.score, (face.landmarks + 0.5) * back - 0.5)
            for face in self.detect_once(image)
        ]

    def _refined(self, image: Images, face: Detection) -> Detection:
        """The same face, with the landmarks of the last pass that found it and the highest score."""
        if seen := self._passes(image, face, face.landmarks):
            return seen
        # a head on its side, whose landmarks the first pass put as if it were upright
        centre = face.landmarks.mean(0)
        turned = [(face.landmarks - centre) @ turn.T + centre for turn in _SIDEWAYS]
        found = [other for landmarks in turned if (other := self._passes(image, face, landmarks))]
        return max(found, key=lambda other: other.score, default=face)

    def _passes(self, image: Images, face: Detection, landmarks: Floats) -> Detection | None:
        """The face after passes that begin with these landmarks; None where the first does not find it."""
        score = None
        for _ in range(_UPRIGHT_PASSES):
            upright = similarity(landmarks, _EXPECTED)
            seen = self._upright(warp(image, upright, _UPRIGHT_SIZE))
            if not seen:
                break
            landmarks = moved(np.mean([each.landmarks for each in seen], 0), inverted(upright))
            score = max(score or face.score, *(each.score for each in seen))
        return None if score is None else Detection(face.box, score, landmarks)

    def _upright(self, patch: Images) -> list[Detection]:
        """The face in the middle of a patch, as it is and mirrored, where it is found."""
        seen = []
        for mirrored in (False, True):
            faces = self.detect_once(np.ascontiguousarray(patch[:, ::-1]) if mirrored else patch)
            if mirrored:
                faces = [Detection(face.box, face.score, _unmirrored(face.landmarks)) for face in faces]
            distances = [float(np.linalg.norm(face.landmarks - _EXPECTED, axis=1).mean()) for face in faces]
            if distances and min(distances) <= _FARTHEST * _EYE_DISTANCE:
                seen.append(faces[int(np.argmin(distances))])
        return seen


def _unmirrored(landmarks: Floats) -> Floats:
    """Landmarks (5, 2) found in a mirrored patch, where they are in the patch: left and right change places."""
    turned = landmarks[_MIRRORED]
    turned[:, 0] = _UPRIGHT_SIZE - 1 - turned[:, 0]
    return turned
