"""Limits of an attack's work: public faces and steps (budgets), and rows that are held in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ppfr.methods.common.payload import PayloadSchema
from ppfr.util.errors import AttackError

Progress = Callable[[int, int], None]
"""Called with the number of finished and of all parts of the work."""

# images that go through a client at once, and bytes of their payloads
_CHUNK, _BYTES = 32, 1 << 26


@dataclass(frozen=True)
class Budget:
    """How much an attack may spend: the most public faces to learn from, and a factor on its usual number of steps.

    Budgets count steps, not seconds, so that a seed repeats a result on any machine.
    """

    name: str
    faces: int
    effort: float

    def steps(self, usual: int) -> int:
        """Number of steps where the `fast` budget takes `usual`; at least one, unless `usual` is 0."""
        return max(1, round(usual * self.effort)) if usual else 0


BUDGETS = {
    budget.name: budget
    for budget in (Budget("fast", 512, 1.0), Budget("standard", 4096, 4.0), Budget("full", 65536, 20.0))
}


def find_budget(budget: Budget | str) -> Budget:
    """A budget by name, or as it is; raises AttackError for an unknown name."""
    if isinstance(budget, Budget):
        return budget
    if budget not in BUDGETS:
        raise AttackError(f"no budget {budget!r}; known: {', '.join(BUDGETS)}")
    return BUDGETS[budget]


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, evenly spaced, in order."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


def row_chunks(count: int, schema: PayloadSchema, most: int = _CHUNK) -> list[range]:
    """Rows 0..count-1 in consecutive ranges whose payloads take at most 64 MiB each, or one row."""
    size = min(most, max(1, _BYTES // max(1, schema.nbytes)))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
