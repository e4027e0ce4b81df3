"""PPFR systems: one file a method, found by name."""

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec
from ppfr.methods.common.registry import create, method_class, method_names, register
from ppfr.methods.common.stage import Mixture, Stage, TrainingStep, TrunkInput

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
