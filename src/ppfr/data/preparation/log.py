"""Where every crop of a prepared set comes from, and what gave none: two CSV files that grow with the set."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ppfr.data.preparation.choosing import Choice, Refusal
from ppfr.util.errors import DataError

FACES = "faces.csv"
REFUSED = "refused.csv"
_POINTS = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
_COLUMNS = {
    FACES: ["path", "identity", "photograph", "score", "left", "top", "right", "bottom", *_POINTS],
    REFUSED: ["photograph", "reason", "detail"],
}


class Refused(NamedTuple):
    """A line of refused.csv."""

    photograph: str
    reason: str
    detail: str


class PrepareLog:
    """Appends to both files in `folder`; what is beyond `sizes`, their lengths at the last checkpoint, is cut off."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._streams = {}
        for name, columns in _COLUMNS.items():
            self._streams[name] = stream = open(folder / name, "r+b" if name in sizes else "wb")  # noqa: SIM115
            stream.truncate(sizes.get(name, 0))
            stream.seek(0, os.SEEK_END)
            if name not in sizes:
                self._write(name, columns)

    def add(self, path: str, photograph: str, choice: Choice) -> None:
        """A crop, which is `path` in the set; pixels are those of the upright photograph."""
        face = choice.face
        numbers = [*face.box.tolist(), *face.landmarks.ravel().tolist()]
        line = [path, choice.identity, photograph, f"{face.score:.4f}", *(f"{number:.2f}" for number in numbers)]
        self._write(FACES, line)

    def refuse(self, photograph: str, refusal: Refusal) -> None:
        """A photograph, or a face in it, that gives no crop."""
        self._write(REFUSED, [photograph, *refusal])

    def sizes(self) -> dict[str, int]:
        """Put everything on disk and tell how long the files are."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        return {name: stream.tell() for name, stream in self._streams.items()}

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def _write(self, name: str, fields: list[str]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(fields)
        self._streams[name].write(text.getvalue().encode(errors="surrogateescape"))


def crops_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and identity of every crop in `folder`'s log; raises DataError when it is damaged."""
    for line in _lines(folder, FACES):
        yield line[0], line[1]


def refusals_of(folder: Path) -> Iterator[Refused]:
    """What gave no crop, in order; raises DataError when the log is damaged."""
    for line in _lines(folder, REFUSED):
        yield Refused(*line)


def _lines(folder: Path, name: str) -> Iterator[list[str]]:
    try:
        with open(folder / name, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            lines = csv.reader(stream, strict=True)
            next(lines, None)
            for line in lines:
                if len(line) != len(_COLUMNS[name]):
                    raise DataError(f"{folder / name}, line {lines.line_num}: expected {len(_COLUMNS[name])} columns")
                yield line
    except (OSError, csv.Error) as error:
        raise DataError(f"{folder / name}: cannot be read ({error})") from error
