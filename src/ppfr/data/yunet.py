"""YuNet (Wu, Peng and Yu 2023, "YuNet: a tiny millisecond-level face detector") through OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ppfr.data.align import Floats, inverted, moved, similarity, template, warp
from ppfr.data.detection import Detection, Detector, distinct
from ppfr.data.fetch import cached
from ppfr.data.images import Images
from ppfr.data.opencv import quiet
from ppfr.errors import DataError
from ppfr.files import sha256_file

MODEL_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/"
    "models/face_detection_yunet/face_detection_yunet_2026may.onnx"
)
MODEL_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"

SCORE = 0.6
"""A face is reported when a look at it is at least so sure."""

# a face that the first look doubts may convince the second, which sees it upright and large
_CANDIDATE_SCORE = 0.4
_MOST_OVERLAP = 0.4
# YuNet learned faces of 10 to 300 pixels: the longest side of what the first look sees, and of what it sees again of
# photographs half as large again
_SIDES = (640, 1280)
_LEAST_SIDE = 32
# the second look: the crop's template twice as large, with room around it, because YuNet learned faces in scenes
_UPRIGHT = 2.0
_UPRIGHT_SIZE = 320
# farther from where the first look put them, in eye distances, landmarks are those of another face
_FARTHEST = 0.5
_EYE_DISTANCE = float(np.diff(template()[:2], axis=0)[0, 0]) * _UPRIGHT
_MIRRORED = [1, 0, 2, 4, 3]


class YuNet(Detector):
    """YuNet with a second look at each face.

    The first look is at the whole photograph, with its longest side at most 640 pixels (larger ones also at 1280). The
    second sees the face turned upright and at one size, once as it is and once mirrored; its landmarks are the mean of
    the three. Network and thresholds are OpenCV's; the second look is ours, because on its own the network puts the
    landmarks of tilted heads a fifth of the eye distance off.
    """

    name = "yunet"

    def __init__(self, model: Path | None = None) -> None:
        """Load `model`, an ONNX file of OpenCV's model zoo; by default it is fetched once, and its hash checked.

        Raises DataError when the file is missing, is no model for `cv2.FaceDetectorYN`, or cannot be fetched.
        """
        path = model or cached(MODEL_URL, MODEL_SHA256)
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected YuNet as ONNX, for example {MODEL_URL.rsplit('/')[-1]}")
        self.model = sha256_file(path)
        try:
            with quiet():
                self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), _CANDIDATE_SCORE, _MOST_OVERLAP)
                self._look(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise DataError(f"{path}: not a model that cv2.FaceDetectorYN takes ({error.err})") from error

    def detect(self, image: Images) -> list[Detection]:
        """The faces of a photograph (H, W, 3) RGB uint8, the surest first."""
        pixels = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
        longest = max(pixels.shape[:2])
        first = [
            face for side in _SIDES if side == _SIDES[0] or longest > 0.75 * side for face in self._at(pixels, side)
        ]
        seen = [self._again(pixels, face) for face in distinct(first, _MOST_OVERLAP)]
        return distinct([face for face in seen if face.score >= SCORE], _MOST_OVERLAP)

    def _at(self, pixels: Images, side: int) -> list[Detection]:
        """The faces of an image reduced so that its longest side is at most `side`."""
        height, width = pixels.shape[:2]
        scale = min(1.0, side / max(height, width))
        if scale == 1:
            return self._look(pixels)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        back = np.array([width / size[0], height / size[1]])
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return [
            Detection(face.box * np.tile(back, 2), face.score, (face.landmarks + 0.5) * back - 0.5)
            for face in self._look(small)
        ]

    def _again(self, pixels: Images, face: Detection) -> Detection:
        """The same face, with landmarks and score from all looks."""
        expected = (template() - 56) * _UPRIGHT + _UPRIGHT_SIZE / 2
        upright = similarity(face.landmarks, expected)
        patch = warp(pixels, upright, _UPRIGHT_SIZE)
        landmarks, score = [moved(face.landmarks, upright)], face.score
        for mirrored in (False, True):
            seen = self._look(np.ascontiguousarray(patch[:, ::-1]) if mirrored else patch)
            points = [_unmirrored(other.landmarks) if mirrored else other.landmarks for other in seen]
            distances = [float(np.linalg.norm(each - expected, axis=1).mean()) for each in points]
            if distances and min(distances) <= _FARTHEST * _EYE_DISTANCE:
                best = int(np.argmin(distances))
                landmarks.append(points[best])
                score = max(score, seen[best].score)
        return Detection(face.box, score, moved(np.mean(landmarks, 0), inverted(upright)))

    def _look(self, pixels: Images) -> list[Detection]:
        """What the network finds in an image (H, W, 3) BGR as it is."""
        height, width = pixels.shape[:2]
        below, beside = max(0, _LEAST_SIDE - height), max(0, _LEAST_SIDE - width)
        if below or beside:
            pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_CONSTANT), np.uint8)
        self._network.setInputSize(pixels.shape[1::-1])
        rows = self._network.detect(pixels)[1]
        found = np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64)
        corners = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4]])
        return [
            Detection(box, float(row[14]), row[4:14].reshape(5, 2)) for box, row in zip(corners, found, strict=True)
        ]


def _unmirrored(landmarks: Floats) -> Floats:
    """Landmarks (5, 2) found in a mirrored patch, where they are in the patch: left and right change places."""
    turned = landmarks[_MIRRORED]
    turned[:, 0] = _UPRIGHT_SIZE - 1 - turned[:, 0]
    return turned
