"""What an attacker gets back from payloads: attacks by name, each under a stated threat model, and what they leak."""

from ppfr.attacks.base import (
    Attack,
    AttackOptions,
    Has,
    Knows,
    Recovery,
    Sees,
    ThreatModel,
    attacks,
    create_attack,
    register,
)
from ppfr.attacks.leakage import Leakage, Trial, measure_leakage, try_attack

__all__ = [
    "Attack",
    "AttackOptions",
    "Has",
    "Knows",
    "Leakage",
    "Recovery",
    "Sees",
    "ThreatModel",
    "Trial",
    "attacks",
    "create_attack",
    "measure_leakage",
    "register",
    "try_attack",
]
