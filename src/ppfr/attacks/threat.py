"""What an attacker sees, knows and has, as a type that is printed beside every figure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ppfr.util.errors import AttackError


class Sees(StrEnum):
    """What reaches the attacker."""

    PAYLOAD = "one payload"
    PAYLOADS_OF_IMAGE = "several payloads of one image"
    PAYLOADS_OF_PERSON = "several payloads of one person"
    TEMPLATES = "stored templates"


class Knows(StrEnum):
    """How much of the system the attacker knows; each step includes those before it."""

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
    """What an attacker sees, knows and has; printed beside every figure an attack gives.

    `pairs` is how many payload/image pairs there are; it is positive exactly when `has` holds `Has.PAIRS`.
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

    def covers(self, needed: ThreatModel) -> bool:
        """Whether this attacker can run whatever `needed` describes."""
        return not self.lacks(needed)

    def lacks(self, needed: ThreatModel) -> list[str]:
        """What `needed` asks for and this attacker has not, in words; empty when covered."""
        missing = []
        several = (Sees.PAYLOADS_OF_IMAGE, Sees.PAYLOADS_OF_PERSON)
        if self.sees != needed.sees and not (needed.sees is Sees.PAYLOAD and self.sees in several):
            missing.append(f"sight of {needed.sees}")
        if not self.knows_of(needed.knows):
            missing.append(f"knowledge of {needed.knows}")
        missing += [str(item) for item in Has if item in needed.has - self.has]
        if Has.PAIRS in self.has and self.pairs < needed.pairs:
            missing.append(f"{needed.pairs} pairs instead of {self.pairs}")
        return missing

    def knows_of(self, needed: Knows) -> bool:
        """Whether this attacker's knowledge includes `needed`."""
        steps = list(Knows)
        return steps.index(self.knows) >= steps.index(needed)
