"""Heads by name."""

from __future__ import annotations

from typing import Any

import torch

from ppfr.heads.base import Head
from ppfr.heads.margin import AdaFaceHead, ArcFaceHead, CosFaceHead, CurricularFaceHead, SoftmaxHead
from ppfr.util.errors import MethodError

_HEADS: dict[str, type[Head]] = {
    "arcface": ArcFaceHead,
    "cosface": CosFaceHead,
    "curricularface": CurricularFaceHead,
    "adaface": AdaFaceHead,
    "softmax": SoftmaxHead,
}


def head_names() -> list[str]:
    """Names that `build_head` takes."""
    return list(_HEADS)


def build_head(
    name: str,
    *,
    embedding_size: int,
    classes: int,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Head:
    """Build the head `name`; `options` are those of its class, such as `scale` and `margin`.

    The kernel is drawn from `generator`, by default one seeded with 0. Raises MethodError for an unknown
    name, an unknown option or a value out of range.
    """
    if name not in _HEADS:
        raise MethodError(f"unknown head {name!r}; expected one of {', '.join(_HEADS)}")
    known = _HEADS[name].options
    for option in options:
        if option not in known:
            raise MethodError(f"head {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return _HEADS[name](embedding_size=embedding_size, classes=classes, generator=generator, **options)
