"""Classification heads for training recognisers: margin softmax and plain softmax."""

from __future__ import annotations

from ppfr.heads.base import Head, MarginHead
from ppfr.heads.margin import AdaFace, ArcFace, CosFace, CurricularFace, Softmax
from ppfr.heads.registry import build_head, head_names
from ppfr.heads.sharded import ShardedHead, class_range, sample_rows

__all__ = [
    "AdaFace",
    "ArcFace",
    "CosFace",
    "CurricularFace",
    "Head",
    "MarginHead",
    "ShardedHead",
    "Softmax",
    "build_head",
    "class_range",
    "head_names",
    "sample_rows",
]
