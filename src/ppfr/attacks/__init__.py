"""What an attacker gets back from payloads: attacks by name, each under a stated threat model, and what they leak."""

from ppfr.attacks.attacker import BUDGETS, Attacker, Budget, Pairs, PublicFaces, stored_templates
from ppfr.attacks.base import (
    Attack,
    AttackOptions,
    Inference,
    InferenceAttack,
    Linkage,
    LinkageAttack,
    PreparedAttack,
    Recovery,
    RecoveryAttack,
    Result,
    attack_names,
    create_attack,
    register,
)
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel

__all__ = [
    "BUDGETS",
    "Attack",
    "AttackOptions",
    "Attacker",
    "Budget",
    "Has",
    "Inference",
    "InferenceAttack",
    "Knows",
    "Linkage",
    "LinkageAttack",
    "Pairs",
    "PreparedAttack",
    "PublicFaces",
    "Recovery",
    "RecoveryAttack",
    "Result",
    "Sees",
    "ThreatModel",
    "attack_names",
    "create_attack",
    "register",
    "stored_templates",
]
