"""Subjects: the people of a gallery, by name."""

from __future__ import annotations

import time
import uuid

import sqlalchemy as sa

from ppfr.serving.gallery.changes import remove_faces
from ppfr.serving.gallery.database import FACES, SUBJECTS, Database, checked_name, note


class Subjects:
    """A gallery's subjects. Changes are on disk when a method returns; `actor` is the API key for the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def names(self) -> list[str]:
        """Names of all subjects, sorted."""
        with self._database.reading() as connection:
            return list(connection.scalars(sa.select(SUBJECTS.c.name).order_by(SUBJECTS.c.name)))

    def add(self, name: str, actor: str = "") -> None:
        """Add a subject without a face; an existing one stays as it is. Raises GalleryError for an unusable name."""
        with self._database.writing() as connection:
            ensure_subject(connection, name, actor)

    def rename(self, name: str, new: str, actor: str = "") -> bool:
        """Rename a subject; if the new name exists the faces move to it. False if there is no such subject."""
        new = checked_name(new)
        with self._database.writing() as connection:
            source = subject_id(connection, name)
            if source is None:
                return False
            target = subject_id(connection, new)
            if target is None:
                connection.execute(SUBJECTS.update().where(SUBJECTS.c.id == source).values(name=new))
            elif target != source:
                connection.execute(FACES.update().where(FACES.c.subject == source).values(subject=target))
                connection.execute(SUBJECTS.delete().where(SUBJECTS.c.id == source))
            note(connection, actor, "rename subject", source)
            return True

    def delete(self, name: str, actor: str = "") -> int | None:
        """Delete a subject and its templates; returns how many templates, or None if there is no such subject."""
        with self._database.writing() as connection:
            subject = subject_id(connection, name)
            if subject is None:
                return None
            count = remove_faces(connection, FACES.c.subject == subject)
            connection.execute(SUBJECTS.delete().where(SUBJECTS.c.id == subject))
            note(connection, actor, "delete subject", subject, count)
        self._database.scrub()
        return count

    def delete_all(self, actor: str = "") -> int:
        """Delete every subject and template; returns how many subjects."""
        with self._database.writing() as connection:
            faces = remove_faces(connection, sa.true())
            count = int(connection.execute(SUBJECTS.delete()).rowcount)
            note(connection, actor, "delete all subjects", "", faces)
        self._database.scrub()
        return count


def subject_id(connection: sa.Connection, name: str) -> str | None:
    """The id of a subject, or None if there is no such subject."""
    found: str | None = connection.scalar(sa.select(SUBJECTS.c.id).where(SUBJECTS.c.name == name))
    return found


def ensure_subject(connection: sa.Connection, name: str, actor: str) -> str:
    """The id of a subject, who is added if there is none of this name."""
    known = subject_id(connection, checked_name(name))
    if known is not None:
        return known
    subject = str(uuid.uuid4())
    connection.execute(SUBJECTS.insert().values(id=subject, name=name, created=time.time()))
    note(connection, actor, "add subject", subject)
    return subject
