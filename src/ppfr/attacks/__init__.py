"""Attacks by name, each under a stated threat model, and metrics of what they recover from payloads."""

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import (
    Attack,
    AttackOptions,
    Inference,
    Linkage,
    PreparedAttack,
    Recovery,
    Result,
    attack_names,
    create_attack,
    register,
)
from ppfr.attacks.budget import BUDGETS, Budget
from ppfr.attacks.learned.features import FeatureCache
from ppfr.attacks.metrics import Figure, MetricContext, Truth
from ppfr.attacks.observation import stored_templates
from ppfr.attacks.public_data import Pairs, PublicFaces
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel

__all__ = [
    "BUDGETS",
    "Attack",
    "AttackOptions",
    "Attacker",
    "Budget",
    "FeatureCache",
    "Figure",
    "Has",
    "Inference",
    "Knows",
    "Linkage",
    "MetricContext",
    "Pairs",
    "PreparedAttack",
    "PublicFaces",
    "Recovery",
    "Result",
    "Sees",
    "ThreatModel",
    "Truth",
    "attack_names",
    "create_attack",
    "register",
    "stored_templates",
]
