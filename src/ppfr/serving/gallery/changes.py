"""The change feed: what readers of a gallery, such as search indexes, need in order to stay equal to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from torch import Tensor

from ppfr.serving.gallery.database import CHANGES, FACES, REQUESTS, Database
from ppfr.serving.gallery.vault import TEMPLATES, Vault

_CHUNK = 1000


@dataclass(frozen=True)
class Change:
    """A face that was enrolled, or with `template` None removed."""

    number: int
    face: str
    template: Tensor | None


class ChangeFeed:
    """A gallery's changes, numbered in the order in which they became visible."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault

    def snapshot(self) -> tuple[int, Iterator[tuple[list[str], Tensor]]]:
        """The number of the last change, and all templates in batches of faces and templates (N,D).

        A reader that takes all batches and then asks for the changes after that number has missed none.
        """
        with self._database.reading() as connection:
            last = int(connection.scalar(sa.select(sa.func.max(CHANGES.c.number))) or 0)
        return last, self._batches()

    def after(self, number: int) -> list[Change]:
        """Up to 1,000 changes after a number, in order; a face that changed twice comes once, as it is now."""
        with self._database.reading() as connection:
            chosen = CHANGES.select().where(CHANGES.c.number > number).order_by(CHANGES.c.number).limit(_CHUNK)
            latest = {row.face: row.number for row in connection.execute(chosen)}
            held = connection.execute(TEMPLATES.where(FACES.c.id.in_(list(latest)))).all()
        templates = dict(zip([row.id for row in held], self._vault.open(held) if held else [], strict=True))
        return [Change(number, face, templates.get(face)) for number, face in sorted((n, f) for f, n in latest.items())]

    def _batches(self) -> Iterator[tuple[list[str], Tensor]]:
        last = ""
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(TEMPLATES.where(FACES.c.id > last).order_by(FACES.c.id).limit(_CHUNK)).all()
            if not rows:
                return
            last = rows[-1].id
            yield [row.id for row in rows], self._vault.open(rows)


def record_change(connection: sa.Connection, faces: Sequence[str]) -> None:
    """Number a change of each face."""
    if faces:
        connection.execute(CHANGES.insert(), [{"face": face} for face in faces])


def remove_faces(connection: sa.Connection, which: Any) -> int:
    """Delete the faces that fulfil a condition, with the requests that enrolled them; returns how many."""
    faces = list(connection.scalars(sa.select(FACES.c.id).where(which)))
    for first in range(0, len(faces), _CHUNK):
        part = faces[first : first + _CHUNK]
        connection.execute(REQUESTS.delete().where(REQUESTS.c.face.in_(part)))
        connection.execute(FACES.delete().where(FACES.c.id.in_(part)))
    record_change(connection, faces)
    return len(faces)
