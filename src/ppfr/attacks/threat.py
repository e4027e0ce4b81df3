"""Threat models: what an attacker sees, knows and has, printed beside every figure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ppfr.methods.common.info import MethodInfo
from ppfr.util.errors import AttackError


class Sees(StrEnum):
    """What reaches the attacker."""

    PAYLOAD = "one payload"
    PAYLOADS_OF_IMAGE = "several payloads of one image"
    PAYLOADS_OF_PERSON = "several payloads of one person"
    TEMPLATES = "stored templates"

    @property
    def several(self) -> bool:
        """Whether several payloads of each image or person are seen."""
        return self in (Sees.PAYLOADS_OF_IMAGE, Sees.PAYLOADS_OF_PERSON)


class Knows(StrEnum):
    """How much of the system the attacker knows; each level includes those before it."""

    NOTHING = "nothing"
    METHOD = "the method"
    PARAMETERS = "the method's public parameters"
    SECRETS = "the deployment's secrets"


class Has(StrEnum):
    """What else the attacker holds."""

    FACES = "public faces"
    PAIRS = "payload/image pairs"
    QUERIES = "query access to the client"
    RECOGNISER = "a public recogniser"


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker sees, knows and has; printed beside every figure of an attack.

    `pairs` is the number of payload/image pairs; it is positive exactly when `has` holds `Has.PAIRS`. Raises
    AttackError otherwise.
    """

    sees: Sees = Sees.PAYLOAD
    knows: Knows = Knows.NOTHING
    has: frozenset[Has] = frozenset()
    pairs: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "has", frozenset(self.has))
        if (self.pairs > 0) != (Has.PAIRS in self.has) or self.pairs < 0:
            raise AttackError(
                f"threat model has pairs={self.pairs} and has={sorted(self.has)}; "
                "give a positive number of pairs together with Has.PAIRS, or neither"
            )

    def __str__(self) -> str:
        held = [f"{self.pairs} {item}" if item is Has.PAIRS else str(item) for item in Has if item in self.has]
        return f"sees {self.sees}; knows {self.knows}; has {' and '.join(held) or 'no data'}"

    def lacks(self, needed: ThreatModel) -> list[str]:
        """The capabilities that `needed` requires and this attacker lacks, in words; empty if it lacks none."""
        missing = []
        if self.sees != needed.sees and not (needed.sees is Sees.PAYLOAD and self.sees.several):
            missing.append(f"sight of {needed.sees}")
        if not self.knows_of(needed.knows):
            missing.append(f"knowledge of {needed.knows}")
        missing += [str(item) for item in Has if item in needed.has - self.has]
        if Has.PAIRS in self.has and self.pairs < needed.pairs:
            missing.append(f"{needed.pairs} pairs instead of {self.pairs}")
        return missing

    def knows_of(self, needed: Knows) -> bool:
        """Whether this attacker's knowledge includes `needed`."""
        levels = list(Knows)
        return levels.index(self.knows) >= levels.index(needed)


def client_knowledge(target: MethodInfo) -> Knows:
    """What an attacker must know to list a method's possible clients."""
    return Knows.SECRETS if target.secrets else Knows.PARAMETERS


def held(faces: object | None, recogniser: object | None, pairs: object | None) -> frozenset[Has]:
    """Which of these an attacker was given."""
    given = {Has.FACES: faces, Has.RECOGNISER: recogniser, Has.PAIRS: pairs}
    return frozenset(item for item, thing in given.items() if thing is not None)


def training_threat(
    holds: frozenset[Has], knows: Knows = Knows.NOTHING, also: frozenset[Has] = frozenset()
) -> ThreatModel:
    """Threat model of an attack that learns from training pairs: pairs if it holds some, else faces and the client."""
    if Has.PAIRS in holds:
        return ThreatModel(Sees.PAYLOAD, knows, also | {Has.PAIRS}, pairs=1)
    return ThreatModel(Sees.PAYLOAD, knows, also | {Has.FACES, Has.QUERIES})
