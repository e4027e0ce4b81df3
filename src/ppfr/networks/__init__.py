"""Recognition backbones and their published weights."""

from __future__ import annotations

from ppfr.networks.base import AfterStage, Backbone
from ppfr.networks.registry import backbone_names, build_backbone

__all__ = ["AfterStage", "Backbone", "backbone_names", "build_backbone"]
