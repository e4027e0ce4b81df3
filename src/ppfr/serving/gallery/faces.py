"""Enrolled faces: one template each, under a subject."""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from torch import Tensor

from ppfr.serving.gallery.changes import record_change, remove_faces
from ppfr.serving.gallery.database import FACES, REQUESTS, SUBJECTS, Database, checked_name, note
from ppfr.serving.gallery.subjects import ensure_subject, subject_id
from ppfr.serving.gallery.vault import TEMPLATES, Vault
from ppfr.util.errors import GalleryError

_WITH_SUBJECT = FACES.join(SUBJECTS, SUBJECTS.c.id == FACES.c.subject)


@dataclass(frozen=True)
class Face:
    """One enrolled face, without its template."""

    id: str
    subject: str


class Faces:
    """A gallery's faces. Changes are on disk when a method returns; `actor` is the API key for the audit."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault

    def enrol(
        self, subject: str, embedding: Tensor, *, request: str | None = None, content: bytes = b"", actor: str = ""
    ) -> Face:
        """Store the template of an embedding (D,) under a subject, who is added if there is none of this name.

        With a `request` key, repeating the call with the same subject and `content` (the message that the embedding was
        made from) returns the same face instead of storing it twice. Raises GalleryError for an embedding of another
        length, and for a request key that was used for another face.
        """
        values = self._vault.checked(embedding)
        name = checked_name(subject)
        digest = _request_digest(name, content)
        if request is not None and (known := self._repeated(request, digest)) is not None:
            return known
        face = str(uuid.uuid4())
        try:
            with self._database.writing() as connection:
                sealed = self._vault.seal(connection, face, values)
                owner = ensure_subject(connection, name, actor)
                connection.execute(FACES.insert().values(id=face, subject=owner, created=time.time(), **sealed))
                if request is not None:
                    row = {"key": request, "digest": digest, "face": face, "created": time.time()}
                    connection.execute(REQUESTS.insert().values(row))
                record_change(connection, [face])
                note(connection, actor, "enrol face", owner, 1)
        except IntegrityError as error:
            # the same request came twice at once, and the other one was first
            if request is not None and (known := self._repeated(request, digest)) is not None:
                return known
            raise GalleryError(f"the face could not be enrolled: {error.orig}") from error
        return Face(face, name)

    def find(self, subject: str | None = None, *, offset: int = 0, limit: int | None = None) -> list[Face]:
        """Enrolled faces, oldest first, of one subject or of all."""
        chosen = sa.select(FACES.c.id, SUBJECTS.c.name).select_from(_WITH_SUBJECT).where(_of(subject))
        chosen = chosen.order_by(FACES.c.created, FACES.c.id).offset(offset).limit(limit)
        with self._database.reading() as connection:
            return [Face(*row) for row in connection.execute(chosen)]

    def count(self, subject: str | None = None) -> int:
        """How many faces are enrolled, of one subject or of all."""
        chosen = sa.select(sa.func.count()).select_from(_WITH_SUBJECT).where(_of(subject))
        with self._database.reading() as connection:
            return int(connection.scalar(chosen) or 0)

    def owners(self, faces: Sequence[str]) -> dict[str, str]:
        """Subjects' names by face; faces that are not enrolled are left out."""
        chosen = sa.select(FACES.c.id, SUBJECTS.c.name).select_from(_WITH_SUBJECT)
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(chosen.where(FACES.c.id.in_(list(faces))))}

    def templates(self, subject: str) -> Tensor | None:
        """The templates (N,D), float32, of a subject; None for a subject without faces."""
        with self._database.reading() as connection:
            owner = subject_id(connection, subject)
            rows = connection.execute(TEMPLATES.where(FACES.c.subject == owner)).all()
        return self._vault.open(rows) if rows else None

    def template(self, face: str) -> Tensor | None:
        """The template (D,), float32, of a face; None for a face that is not enrolled."""
        with self._database.reading() as connection:
            row = connection.execute(TEMPLATES.where(FACES.c.id == face)).one_or_none()
        return None if row is None else self._vault.open([row])[0]

    def delete(self, face: str, actor: str = "") -> Face | None:
        """Delete a face; None if it is not enrolled."""
        with self._database.writing() as connection:
            chosen = sa.select(SUBJECTS.c.id, SUBJECTS.c.name).select_from(_WITH_SUBJECT).where(FACES.c.id == face)
            owner = connection.execute(chosen).one_or_none()
            if owner is None:
                return None
            remove_faces(connection, FACES.c.id == face)
            note(connection, actor, "delete face", owner[0], 1)
        self._database.scrub()
        return Face(face, owner[1])

    def delete_of(self, subject: str, actor: str = "") -> int:
        """Delete all faces of a subject, who stays; returns how many."""
        with self._database.writing() as connection:
            owner = subject_id(connection, subject)
            count = 0 if owner is None else remove_faces(connection, FACES.c.subject == owner)
            if count:
                note(connection, actor, "delete faces", owner or "", count)
        self._database.scrub()
        return count

    def _repeated(self, request: str, digest: str) -> Face | None:
        """The face that a request enrolled before."""
        with self._database.reading() as connection:
            row = connection.execute(REQUESTS.select().where(REQUESTS.c.key == request)).one_or_none()
        if row is None:
            return None
        if not hmac.compare_digest(row.digest, digest):
            raise GalleryError(f"request key {request!r} was used for another face; every enrolment needs its own")
        return Face(row.face, self.owners([row.face]).get(row.face, ""))


def _of(subject: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if subject is None else SUBJECTS.c.name == subject


def _request_digest(subject: str, content: bytes) -> str:
    name = subject.encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + content).hexdigest()
