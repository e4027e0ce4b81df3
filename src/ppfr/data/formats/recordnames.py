"""`NAME.names.csv` beside a record set: what the records themselves cannot say.

RecordIO holds numbers only, TFRecord's training index holds labels, and neither notices a changed label. The sidecar
has a line for each image, in the order of the records: `path,identity,check`. `check` is a CRC-32C (8 hexadecimal
digits) over label, identity, path and image, so that no change of one of them goes unnoticed. Other programs ignore it.
"""

from __future__ import annotations

import csv
from array import array
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from ppfr.data.faceset import Indices
from ppfr.data.formats.recordfiles import TextPacker, Texts, integers
from ppfr.util.errors import DataError

COLUMNS = ["path", "identity", "check"]
SUFFIX = ".names.csv"


@dataclass
class RecordNames:
    """Row k belongs to image k: its name, its identity (`identities[people[k]]`) and its checksum."""

    path: Path
    names: Texts
    identities: list[str]
    people: Indices
    checks: Indices

    def verify(self, row: int, label: int, image: bytes) -> None:
        """Raise DataError unless label, identity, name and image of a row are those that were written."""
        if self.checks[row] != checksum(label, self.identities[self.people[row]], self.names[row], image):
            raise DataError(f"image, label, or its line in {self.path.name} has changed since it was written")


def names_path(path: Path) -> Path:
    """Where the names of `NAME.rec` or `NAME.txt` are."""
    return path.with_name(path.stem + SUFFIX)


def checksum(label: int, identity: str, name: str, image: bytes) -> int:
    """CRC-32C over all that belongs to an image."""
    words = f"{label}\0{identity}\0{name}\0".encode(errors="surrogateescape")
    return int(google_crc32c.extend(google_crc32c.value(words), image))


def read_names(path: Path, rows: int) -> RecordNames | None:
    """The names beside a record set, None where there are none; raises DataError unless there is one a record."""
    sidecar = names_path(path)
    if not sidecar.exists():
        return None
    names, people, checks = TextPacker(), array("q"), array("q")
    numbers: dict[str, int] = {}
    try:
        with open(sidecar, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            lines = csv.reader(stream, strict=True)
            if next(lines, None) != COLUMNS:
                raise DataError(f"{sidecar}: expected the columns {','.join(COLUMNS)} in the first line")
            for line in lines:
                if len(line) != len(COLUMNS):
                    raise DataError(f"{sidecar}, line {lines.line_num}: {len(line)} columns; expected {len(COLUMNS)}")
                names.add(line[0])
                people.append(numbers.setdefault(line[1], len(numbers)))
                checks.append(_check(line[2]))
    except (OSError, csv.Error) as error:
        raise DataError(f"{sidecar}: cannot be read as a CSV ({error})") from error
    if len(checks) != rows:
        raise DataError(
            f"{sidecar}: {len(checks)} lines for {rows} images in {path.name}; one of them is damaged or of another "
            "set. Without the names file the set opens with numbers for names"
        )
    return RecordNames(sidecar, names.texts(), list(numbers), integers(people), integers(checks))


def _check(text: str) -> int:
    try:
        return int(text, 16) if len(text) == 8 else -1
    except ValueError:
        return -1
