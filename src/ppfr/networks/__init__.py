"""Recognition backbones, the landmark network, the U-Net, and their published weights."""

from __future__ import annotations

from ppfr.networks.base import AfterStage, Backbone
from ppfr.networks.checkpoints import Checkpoint, load_checkpoint
from ppfr.networks.pfld import LANDMARKS, PFLD, load_pfld
from ppfr.networks.preprocessing import Preprocessing
from ppfr.networks.recogniser import Recogniser, load_recogniser
from ppfr.networks.registry import backbone_names, build_backbone, default_input_size
from ppfr.networks.unet import UNet, build_unet

__all__ = [
    "LANDMARKS",
    "PFLD",
    "AfterStage",
    "Backbone",
    "Checkpoint",
    "Preprocessing",
    "Recogniser",
    "UNet",
    "backbone_names",
    "build_backbone",
    "build_unet",
    "default_input_size",
    "load_checkpoint",
    "load_pfld",
    "load_recogniser",
]
