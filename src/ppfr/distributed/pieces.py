"""Bulk work cut into numbered pieces, a file each, shared among ranks and resumed piece by piece."""

from __future__ import annotations

import json
from pathlib import Path

from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

PLAN_FILE = "plan.json"


class Pieces:
    """Pieces 0 to `count` - 1 of one piece of work, in `folder`; rank r of `ranks` does every `world`-th from r on.

    What a piece holds may depend on its number and the plan only, never on the rank: then the whole is the same for any
    number of ranks and after any stop.
    """

    def __init__(self, folder: Path, count: int, suffix: str, ranks: Ranks) -> None:
        self.folder = folder
        self.count = count
        self.suffix = suffix
        self.ranks = ranks

    def claim(self, plan: dict[str, object]) -> None:
        """Begin the folder, or find it begun with the same plan; called by all ranks. Raises DataError."""
        self.ranks.on_first(lambda: _claim(self.folder, plan))

    def file(self, number: int) -> Path:
        """Where a piece lies when it is done."""
        return self.folder / f"{number:08d}{self.suffix}"

    def own(self) -> range:
        """Numbers of the pieces that this rank does, done or not."""
        return range(self.count)[self.ranks.rank :: self.ranks.world]


def _claim(folder: Path, plan: dict[str, object]) -> None:
    file = folder / PLAN_FILE
    if file.exists():
        try:
            begun = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); remove {folder} to begin anew") from error
        if changed := sorted(key for key in plan if begun.get(key) != plan[key]):
            raise DataError(
                f"{folder} holds pieces with another {', '.join(changed)}; repeat the command that began them, or "
                "remove the folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(plan, indent=2) + "\n")
