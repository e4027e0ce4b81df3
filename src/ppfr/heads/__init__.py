"""Classification heads for training recognisers: margin softmax and plain softmax."""

from __future__ import annotations

from ppfr.heads.base import Head, MarginHead
from ppfr.heads.margin import AdaFaceHead, ArcFaceHead, CosFaceHead, CurricularFaceHead, SoftmaxHead
from ppfr.heads.registry import build_head, head_names
from ppfr.heads.sharded import ShardedHead, class_range, sample_rows

__all__ = [
    "AdaFaceHead",
    "ArcFaceHead",
    "CosFaceHead",
    "CurricularFaceHead",
    "Head",
    "MarginHead",
    "ShardedHead",
    "SoftmaxHead",
    "build_head",
    "class_range",
    "head_names",
    "sample_rows",
]
