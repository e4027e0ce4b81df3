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
from ppfr.attacks.leakage import Leakage, Trial, measure_leakage, try_attack
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
    "Leakage",
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
    "Trial",
    "attack_names",
    "create_attack",
    "measure_leakage",
    "register",
    "stored_templates",
    "try_attack",
]
