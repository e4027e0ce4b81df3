"""Recognition backbones and their published weights."""

from __future__ import annotations

from ppfr.networks.base import AfterStage, Backbone
from ppfr.networks.checkpoints import Checkpoint, load_checkpoint
from ppfr.networks.preprocessing import Preprocessing
from ppfr.networks.recogniser import Recogniser, load_recogniser
from ppfr.networks.registry import backbone_names, build_backbone

__all__ = [
    "AfterStage",
    "Backbone",
    "Checkpoint",
    "Preprocessing",
    "Recogniser",
    "backbone_names",
    "build_backbone",
    "load_checkpoint",
    "load_recogniser",
]
