"""YuNet (Wu, Peng and Yu 2023, "YuNet: a tiny millisecond-level face detector") through OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ppfr.data.detection.detector import Detection
from ppfr.data.detection.multi_pass import CANDIDATE_SCORE, LEAST_SIDE, MOST_OVERLAP, MultiPassDetector
from ppfr.data.images import Images
from ppfr.util.errors import DataError
from ppfr.util.fetch import cached
from ppfr.util.files import sha256_file
from ppfr.util.opencv import quiet

MODEL_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/"
    "models/face_detection_yunet/face_detection_yunet_2026may.onnx"
)
MODEL_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"


class YuNet(MultiPassDetector):
    """YuNet as `cv2.FaceDetectorYN` runs it, in several passes."""

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
                self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), CANDIDATE_SCORE, MOST_OVERLAP)
                self.detect_once(np.zeros((LEAST_SIDE, LEAST_SIDE, 3), np.uint8))
        except cv2.error as error:
            raise DataError(f"{path}: not a model that cv2.FaceDetectorYN takes ({error.err})") from error

    def detect_once(self, image: Images) -> list[Detection]:
        """The faces that the network finds in an image (H, W, 3) RGB in one pass."""
        self._network.setInputSize(image.shape[1::-1])
        rows = self._network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        found = np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64)
        corners = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4]])
        return [
            Detection(box, float(row[14]), row[4:14].reshape(5, 2)) for box, row in zip(corners, found, strict=True)
        ]
