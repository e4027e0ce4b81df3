"""Classification heads for training recognisers: margin softmax and plain softmax."""

from __future__ import annotations

from ppfr.heads.base import Head, MarginHead
from ppfr.heads.margin import AdaFace, ArcFace, CosFace, CurricularFace, Softmax
from ppfr.heads.registry import build_head, head_names

__all__ = [
    "AdaFace",
    "ArcFace",
    "CosFace",
    "CurricularFace",
    "Head",
    "MarginHead",
    "Softmax",
    "build_head",
    "head_names",
]
