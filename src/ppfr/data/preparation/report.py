"""The report of a preparation: where every crop comes from, and what gave none, as two CSV files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from ppfr.data.preparation.choosing import Choice, Refusal

_POINTS = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
_COLUMNS = {
    "faces.csv": ["path", "identity", "photograph", "score", "left", "top", "right", "bottom", *_POINTS],
    "refused.csv": ["photograph", "reason", "detail"],
}


class Refused(NamedTuple):
    """A line of refused.csv."""

    photograph: str
    reason: str
    detail: str


class PreparationReport:
    """Writes `faces.csv` and `refused.csv` into an empty `folder`, and keeps what was refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: list[Refused] = []
        folder.mkdir(parents=True)
        self._streams = [
            open(folder / name, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            for name in _COLUMNS
        ]
        self._faces, self._refusals = (csv.writer(stream, lineterminator="\n") for stream in self._streams)
        self._faces.writerow(_COLUMNS["faces.csv"])
        self._refusals.writerow(_COLUMNS["refused.csv"])

    def add(self, path: str, photograph: str, choice: Choice) -> None:
        """A crop, which is `path` in the set; pixels are those of the upright photograph."""
        face = choice.face
        numbers = [*face.box.tolist(), *face.landmarks.ravel().tolist()]
        self._faces.writerow(
            [path, choice.identity, photograph, f"{face.score:.4f}", *(f"{number:.2f}" for number in numbers)]
        )

    def refuse(self, photograph: str, refusal: Refusal) -> None:
        """A photograph, or a face in it, that gives no crop."""
        self.refused.append(Refused(photograph, *refusal))
        self._refusals.writerow(self.refused[-1])

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
