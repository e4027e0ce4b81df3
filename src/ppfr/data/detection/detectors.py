"""Face detectors by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ppfr.data.detection.detector import Detector
from ppfr.data.detection.retinaface import RetinaFaceDetector
from ppfr.data.detection.yunet import YuNet
from ppfr.util.errors import DataError

DETECTORS: dict[str, Callable[[Path | None], Detector]] = {"yunet": YuNet, "retinaface": RetinaFaceDetector}


def open_detector(name: str, model: Path | None = None) -> Detector:
    """The detector of a name with the weights in `model`, by default those that are fetched.

    Raises DataError, and CheckpointError for weights of another network.
    """
    if name not in DETECTORS:
        raise DataError(f"unknown detector {name!r}; expected one of {', '.join(DETECTORS)}")
    return DETECTORS[name](model)
