"""Methods by name."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch

from ppfr.methods.common.info import BackboneSpec
from ppfr.methods.common.method import Method
from ppfr.util.errors import MethodError
from ppfr.util.registry import Registry

_METHODS: Registry[type[Method]] = Registry("method", "ppfr.methods", MethodError)
_MethodType = TypeVar("_MethodType", bound=type[Method])


def register(cls: _MethodType) -> _MethodType:
    """Class decorator that makes a method known by `info.name`; raises MethodError for a name already taken.

    Paper and departures, written down once in `info`, join the docstring, so that `help` shows them too.
    """
    _METHODS.register(cls.info.name, cls)
    told = [f"Paper: {cls.info.paper}."]
    if cls.info.departures:
        told.append(f"Ours differs: {cls.info.departures}.")
    cls.__doc__ = "\n\n".join([inspect.cleandoc(cls.__doc__ or cls.info.title), *told])
    return cls


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    return _METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class registered under `name`; raises MethodError that lists the known names."""
    return _METHODS.find(name)


def create(
    name: str,
    backbone: str | BackboneSpec = "ir18",
    seed: int = 0,
    *,
    embedding_size: int | None = None,
    width: float = 1.0,
    **options: Any,
) -> Method:
    """Build an untrained method by name; `seed` fixes the initial weights, `options` are the method's own.

    Raises MethodError for an unknown method or option, naming each refused option and the ones that exist.
    """
    cls = method_class(name)
    spec = (
        backbone
        if isinstance(backbone, BackboneSpec)
        else BackboneSpec(backbone, embedding_size=embedding_size, width=width)
    )
    return cls(cls.Options.parse(options, name), spec, torch.Generator().manual_seed(seed)).eval()


__all__ = ["create", "method_class", "method_names", "register"]
