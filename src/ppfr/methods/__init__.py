"""PPFR systems: one file a method, found by name. What an author of another one needs is imported from here."""

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import Draw, NoGraph, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option, secret_option
from ppfr.methods.common.parts import ChannelServer, clear_stage, server_stage
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec
from ppfr.methods.common.registry import create, method_class, method_names, register
from ppfr.methods.common.secrets import require_secrets
from ppfr.methods.common.stage import Mixture, Stage, TrainingStep, TrunkInput

__all__ = [
    "BackboneSpec",
    "ChannelServer",
    "Draw",
    "Hypothesis",
    "Method",
    "MethodInfo",
    "MethodOptions",
    "Mixture",
    "NoGraph",
    "Payload",
    "PayloadSchema",
    "ProtectGraph",
    "Stage",
    "TensorSpec",
    "TrainingStep",
    "TrunkInput",
    "clear_stage",
    "create",
    "method_class",
    "method_names",
    "payload_option",
    "register",
    "require_secrets",
    "secret_option",
    "server_stage",
]
