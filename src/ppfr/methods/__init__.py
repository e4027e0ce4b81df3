"""PPFR systems: one file a method, found by name."""

from ppfr.methods.common.base import (
    BackboneSpec,
    Hypothesis,
    Method,
    MethodInfo,
    MethodOptions,
    Mixture,
    Stage,
    TrainingStep,
    TrunkInput,
    create,
    method_class,
    method_names,
    register,
)
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec

__all__ = [
    "BackboneSpec",
    "Hypothesis",
    "Method",
    "MethodInfo",
    "MethodOptions",
    "Mixture",
    "Payload",
    "PayloadSchema",
    "Stage",
    "TensorSpec",
    "TrainingStep",
    "TrunkInput",
    "create",
    "method_class",
    "method_names",
    "register",
]
