"""RetinaFace, as a detector of faces in photographs."""

from __future__ import annotations

from pathlib import Path

import torch

from ppfr.data.detection.detector import Detection, suppress
from ppfr.data.detection.multi_pass import CANDIDATE_SCORE, MOST_OVERLAP, MultiPassDetector
from ppfr.data.images import Images, to_tensor
from ppfr.networks.retinaface import load_retinaface
from ppfr.util.errors import DataError
from ppfr.util.files import sha256_file


class RetinaFaceDetector(MultiPassDetector):
    """RetinaFace with MobileNet-0.25 (see `ppfr.networks.retinaface`), in several passes."""

    name = "retinaface"

    def __init__(self, model: Path | None = None, device: str = "cpu") -> None:
        """Load `model`, the published state dict.

        Raises DataError when it is not given, and CheckpointError for weights of another network.
        """
        if model is None:
            raise DataError(
                "RetinaFace's weights are not fetched; give the file with --model: weights/mobilenet0.25_Final.pth of "
                "github.com/biubug6/Face-Detector-1MB-with-landmark"
            )
        self._network = load_retinaface(model).to(device)
        self._device = device
        self.model = sha256_file(model)

    @torch.inference_mode()
    def detect_once(self, image: Images) -> list[Detection]:
        """The faces that the network finds in an image (H, W, 3) RGB in one pass."""
        found = self._network(to_tensor(image[None]).to(self._device))
        sure = found.scores[0] >= CANDIDATE_SCORE
        scores, boxes, landmarks = (part[0, sure].double().cpu().numpy() for part in found)
        kept = suppress(boxes, scores, MOST_OVERLAP)
        return [Detection(boxes[row], float(scores[row]), landmarks[row]) for row in kept.tolist()]
