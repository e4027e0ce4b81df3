"""The gallery: who is enrolled, in a database that keeps templates encrypted and every change for its readers."""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from torch import Tensor

from ppfr.serving.crypto.templates import Kind, Templates
from ppfr.serving.gallery.api_keys import ApiKey, ApiKeys, Role
from ppfr.serving.gallery.database import (
    AUDIT,
    CHANGES,
    FACES,
    REQUESTS,
    SETTINGS,
    SUBJECTS,
    Database,
    checked_name,
    create_tables,
    note,
    write_setting,
)
from ppfr.serving.gallery.renewal import carry_over, encrypt_anew
from ppfr.serving.gallery.vault import KIND, TEMPLATE_KEY, TEMPLATES, Vault, template_key
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

_BATCH = 1000
_CONTRACT, _SIZE = "contract", "template size"


@dataclass(frozen=True)
class Face:
    """One enrolled template, without its values."""

    id: str
    subject: str


@dataclass(frozen=True)
class Change:
    """A face that was enrolled, or with `template` None removed."""

    number: int
    face: str
    template: Tensor | None


@dataclass(frozen=True)
class AuditRow:
    """What was done, when (seconds since 1970), by which API key, to which subject (an id, never a name)."""

    at: float
    actor: str
    action: str
    subject: str
    faces: int


class Gallery(ApiKeys):
    """Subjects and their encrypted templates of one deployment, in any database that SQLAlchemy knows.

    A template is bound to the deployment's contract and to its own row: it opens nowhere else. Whatever returns has
    been committed to disk. Deleted templates are overwritten (SQLite) and gone from the index of every server within
    its polling interval. Without a keyring everything but templates can be had. What a template is made of an embedding
    is chosen for a new gallery by `templates`, plain if None, and then stays; all but plain ones need `template_keys`.
    Raises GalleryError for a database of another deployment or with other templates, or that does not answer.
    """

    def __init__(
        self,
        url: str,
        keyring: Keyring | None,
        contract: str,
        size: int,
        *,
        templates: Kind | str | None = None,
        template_keys: Keyring | None = None,
    ) -> None:
        super().__init__(Database(url))
        self.contract, self.size = contract, size
        if keyring is not None and template_keys is not None and set(keyring.ids) & set(template_keys.ids):
            raise GalleryError(
                "one key both encrypts templates and makes them: whoever has it could undo a reissue. Give another one"
            )
        with self._database.reachable():
            known = self._claim(templates, template_keys)
        made = Templates(known.get(KIND, Kind.PLAIN), size, template_keys)
        self._vault = Vault(keyring, made, contract, known.get(TEMPLATE_KEY, ""))

    @classmethod
    def existing(cls, url: str, keyring: Keyring | None = None, template_keys: Keyring | None = None) -> Self:
        """The gallery that a database holds, whatever its deployment; raises GalleryError if it holds none."""
        database = Database(url)
        with database.reachable():
            if not database.holds_gallery():
                raise GalleryError(
                    f"{database} holds no gallery; `ppfr serve DEPLOYMENT --gallery ... --init` makes one"
                )
            known = database.settings()
        database.close()
        return cls(url, keyring, known[_CONTRACT], int(known[_SIZE]), template_keys=template_keys)

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    # --- subjects -----------------------------------------------------------------------------------------------
    def subjects(self) -> list[str]:
        """Names of all subjects, sorted."""
        with self._database.reading() as connection:
            return list(connection.scalars(sa.select(SUBJECTS.c.name).order_by(SUBJECTS.c.name)))

    def add_subject(self, name: str, actor: str = "") -> None:
        """Enrol a name without a face; one that is there already stays as it is."""
        with self._database.writing() as connection:
            self._subject(connection, name, actor)

    def rename_subject(self, name: str, new: str, actor: str = "") -> bool:
        """Give a subject another name; if that one exists the faces move to it. False if there is no such subject."""
        new = checked_name(new)
        with self._database.writing() as connection:
            source = _subject_id(connection, name)
            if source is None:
                return False
            target = _subject_id(connection, new)
            if target is None:
                connection.execute(SUBJECTS.update().where(SUBJECTS.c.id == source).values(name=new))
            elif target != source:
                connection.execute(FACES.update().where(FACES.c.subject == source).values(subject=target))
                connection.execute(SUBJECTS.delete().where(SUBJECTS.c.id == source))
            note(connection, actor, "rename subject", source)
            return True

    def delete_subject(self, name: str, actor: str = "") -> int | None:
        """Remove a subject and its templates for good; returns how many, or None if there is no such subject."""
        with self._database.writing() as connection:
            subject = _subject_id(connection, name)
            if subject is None:
                return None
            count = self._delete_faces(connection, FACES.c.subject == subject)
            connection.execute(SUBJECTS.delete().where(SUBJECTS.c.id == subject))
            note(connection, actor, "delete subject", subject, count)
        self._database.scrub()
        return count

    def delete_all_subjects(self, actor: str = "") -> int:
        """Remove every subject and template; returns how many subjects."""
        with self._database.writing() as connection:
            faces = self._delete_faces(connection, sa.true())
            count = int(connection.execute(SUBJECTS.delete()).rowcount)
            note(connection, actor, "delete all subjects", "", faces)
        self._database.scrub()
        return count

    # --- faces --------------------------------------------------------------------------------------------------
    def enrol(
        self, subject: str, embedding: Tensor, *, request: str | None = None, content: bytes = b"", actor: str = ""
    ) -> Face:
        """Store the template of an embedding (D,) under a subject, who is added if need be.

        With a `request` key, repeating the call with the same subject and `content` (the message that the embedding was
        made from) returns the same face instead of storing it twice. Raises GalleryError for an embedding of another
        length, and for a request key that came with something else.
        """
        values = self._vault.checked(embedding)
        name = checked_name(subject)
        digest = None if request is None else _request_digest(name, content)
        if request is not None and digest is not None:
            known = self._repeated(request, digest)
            if known is not None:
                return known
        face = str(uuid.uuid4())
        try:
            with self._database.writing() as connection:
                sealed = self._vault.seal(connection, face, values)
                owner = self._subject(connection, name, actor)
                connection.execute(FACES.insert().values(id=face, subject=owner, created=time.time(), **sealed))
                if request is not None:
                    row = {"key": request, "digest": digest, "face": face, "created": time.time()}
                    connection.execute(REQUESTS.insert().values(row))
                self._tell(connection, [face])
                note(connection, actor, "enrol face", owner, 1)
        except IntegrityError as error:
            # the same request twice at once: the other one was first
            known = None if request is None or digest is None else self._repeated(request, digest)
            if known is None:
                raise GalleryError(f"the face could not be enrolled: {error.orig}") from error
            return known
        return Face(face, name)

    def faces(self, subject: str | None = None, *, offset: int = 0, limit: int | None = None) -> list[Face]:
        """Enrolled faces, oldest first, of one subject or of all."""
        chosen = (
            sa.select(FACES.c.id, SUBJECTS.c.name)
            .join(SUBJECTS, SUBJECTS.c.id == FACES.c.subject)
            .order_by(FACES.c.created, FACES.c.id)
            .offset(offset)
        )
        if subject is not None:
            chosen = chosen.where(SUBJECTS.c.name == subject)
        with self._database.reading() as connection:
            return [Face(*row) for row in connection.execute(chosen if limit is None else chosen.limit(limit))]

    def count(self, subject: str | None = None) -> int:
        """How many faces are enrolled."""
        chosen = sa.select(sa.func.count()).select_from(FACES.join(SUBJECTS, SUBJECTS.c.id == FACES.c.subject))
        if subject is not None:
            chosen = chosen.where(SUBJECTS.c.name == subject)
        with self._database.reading() as connection:
            return int(connection.scalar(chosen) or 0)

    def owners(self, faces: Sequence[str]) -> dict[str, str]:
        """Subjects' names by face; faces that are gone are left out."""
        chosen = sa.select(FACES.c.id, SUBJECTS.c.name).join(SUBJECTS, SUBJECTS.c.id == FACES.c.subject)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.where(FACES.c.id.in_(list(faces))))
            return {str(face): str(name) for face, name in rows}

    def template(self, face: str) -> Tensor | None:
        """A template (D,), float32, to compare with what `protect` makes; None for a face that is not there."""
        with self._database.reading() as connection:
            row = connection.execute(TEMPLATES.where(FACES.c.id == face)).one_or_none()
        return None if row is None else self._vault.open([row])[0]

    def protect(self, embeddings: Tensor) -> Tensor:
        """Templates (N,D) of embeddings (N,D), as the gallery's own are to be compared with."""
        return self._vault.templates.protect(embeddings, self.template_key)

    def delete_face(self, face: str, actor: str = "") -> Face | None:
        """Remove a face for good; None if it is not there."""
        with self._database.writing() as connection:
            chosen = sa.select(SUBJECTS.c.id, SUBJECTS.c.name).join(FACES, SUBJECTS.c.id == FACES.c.subject)
            owner = connection.execute(chosen.where(FACES.c.id == face)).one_or_none()
            if owner is None:
                return None
            self._delete_faces(connection, FACES.c.id == face)
            note(connection, actor, "delete face", owner[0], 1)
        self._database.scrub()
        return Face(face, owner[1])

    def delete_faces(self, subject: str, actor: str = "") -> int:
        """Remove all faces of a subject, who stays; returns how many."""
        with self._database.writing() as connection:
            owner = _subject_id(connection, subject)
            count = 0 if owner is None else self._delete_faces(connection, FACES.c.subject == owner)
            if count:
                note(connection, actor, "delete faces", owner or "", count)
        self._database.scrub()
        return count

    # --- for indexes --------------------------------------------------------------------------------------------
    def snapshot(self) -> tuple[int, Iterator[tuple[list[str], Tensor]]]:
        """The number of the last change, and all templates in batches: faces and templates (N,D).

        Whoever reads the batches and then asks for the changes after that number has missed nothing.
        """
        with self._database.reading() as connection:
            last = int(connection.scalar(sa.select(sa.func.max(CHANGES.c.number))) or 0)
        return last, self._batches()

    def changes(self, after: int) -> list[Change]:
        """What was enrolled and removed after a change, in order; one entry a face, with what it is now."""
        with self._database.reading() as connection:
            chosen = CHANGES.select().where(CHANGES.c.number > after).order_by(CHANGES.c.number).limit(_BATCH)
            rows = connection.execute(chosen).all()
            names = list({row.face for row in rows})
            held = connection.execute(TEMPLATES.where(FACES.c.id.in_(names))).all()
        templates = dict(zip([row.id for row in held], self._vault.open(held) if held else [], strict=True))
        latest = {row.face: row.number for row in rows}
        return [
            Change(number, face, templates.get(face))
            for face, number in sorted(latest.items(), key=lambda pair: pair[1])
        ]

    def _batches(self) -> Iterator[tuple[list[str], Tensor]]:
        last = ""
        while True:
            with self._database.reading() as connection:
                chosen = TEMPLATES.where(FACES.c.id > last).order_by(FACES.c.id).limit(_BATCH)
                rows = connection.execute(chosen).all()
            if not rows:
                return
            last = rows[-1][0]
            yield [row.id for row in rows], self._vault.open(rows)

    # --- keys ---------------------------------------------------------------------------------------------------
    def rotate(self, keyring: Keyring, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Encrypt anew what older keys encrypted, in small steps while others read; returns how many.

        The ring must hold the old keys, too. Stopped half-way, it goes on when called again.
        """
        return encrypt_anew(self._database, self._vault, keyring, progress)

    def reissue(self, keyring: Keyring, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Put all templates under the current key of a ring of template keys; returns how many were carried over.

        The ring must hold the old keys, too. In small steps while others read; stopped half-way, it goes on when called
        again. Templates that cannot be carried over are removed, and their subjects stay. Raises GalleryError for plain
        templates.
        """
        if self.templates is Kind.PLAIN:
            raise GalleryError(
                "plain templates have no key: they cannot be reissued. Make a gallery with rotated or slerp ones, and "
                "enrol anew"
            )
        self._vault.templates.keyring = keyring
        if self._vault.templates.exact:
            return carry_over(self._database, self._vault, progress)
        with self._database.writing() as connection:
            # both at once: templates of two keys never lie side by side
            write_setting(connection, TEMPLATE_KEY, keyring.current)
            removed = self._delete_faces(connection, FACES.c.template_key != keyring.current)
            note(connection, "", "reissue templates", "", removed)
        self._database.scrub()
        return 0

    @property
    def templates(self) -> Kind:
        """What is done to embeddings before they are stored."""
        return self._vault.templates.kind

    @property
    def template_key(self) -> str:
        """Id of the template key that this process compares under; "" for plain templates.

        Where templates can be carried over, it stays what it was at the start, whatever is reissued.
        """
        if self._vault.templates.exact:
            return self._vault.key
        with self._database.reading() as connection:
            return template_key(connection)

    def template_keys_in_use(self) -> dict[str, int]:
        """How many templates are under each template key, by the key's id."""
        chosen = sa.select(FACES.c.template_key, sa.func.count()).group_by(FACES.c.template_key)
        with self._database.reading() as connection:
            return {str(key): int(count) for key, count in connection.execute(chosen)}

    def keys_in_use(self) -> dict[str, int]:
        """How many templates each key encrypts, by the key's id."""
        chosen = sa.select(FACES.c.key_id, sa.func.count()).group_by(FACES.c.key_id)
        with self._database.reading() as connection:
            return {str(key): int(count) for key, count in connection.execute(chosen)}

    def audit(self, limit: int = 1000) -> list[AuditRow]:
        """What was done, newest first."""
        chosen = AUDIT.select().order_by(AUDIT.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [
                AuditRow(row.at, row.actor, row.action, row.subject, row.faces) for row in connection.execute(chosen)
            ]

    def damage(self) -> list[str]:
        """What is amiss in the database itself: SQLite's own check, and repeated requests for faces that are gone."""
        chosen = sa.select(sa.func.count()).select_from(REQUESTS)
        with self._database.reading() as connection:
            lost = int(connection.scalar(chosen.where(REQUESTS.c.face.not_in(sa.select(FACES.c.id)))) or 0)
        return [f"{lost} request keys of faces that are gone"] * bool(lost) + self._database.damage()

    def ping(self) -> None:
        """Raise whatever keeps the database from answering."""
        with self._database.reading() as connection:
            connection.scalar(sa.select(sa.literal(1)))

    # --- inside -------------------------------------------------------------------------------------------------
    def _claim(self, templates: Kind | str | None, template_keys: Keyring | None) -> dict[str, str]:
        """Mark a fresh database as this deployment's, or check that it is; returns what is written down."""
        settings = {_CONTRACT: self.contract, _SIZE: str(self.size)}
        with self._database.writing() as connection:
            create_tables(connection)
            known = {row.name: row.value for row in connection.execute(SETTINGS.select())}
            if not known:
                made = Templates(templates or Kind.PLAIN, self.size, template_keys)
                known = settings | {KIND: str(made.kind), TEMPLATE_KEY: made.current}
                connection.execute(SETTINGS.insert(), [{"name": n, "value": v} for n, v in known.items()])
        changed = sorted(name for name, value in settings.items() if known.get(name) != value)
        if changed:
            told = ", ".join(f"{name} {known.get(name)!r}, not {settings[name]!r}" for name in changed)
            raise GalleryError(
                f"the gallery belongs to another deployment: {told}. Templates of two deployments cannot be compared; "
                "give another database and enrol anew"
            )
        kind = known.get(KIND, Kind.PLAIN)
        if templates is not None and kind != templates:
            raise GalleryError(
                f"the gallery's templates are {kind}, not {templates}, as was chosen when it was made; give another "
                "database and enrol anew"
            )
        return known

    def _subject(self, connection: sa.Connection, name: str, actor: str) -> str:
        """The id of a subject, who is added if need be."""
        name = checked_name(name)
        known = _subject_id(connection, name)
        if known is not None:
            return known
        subject = str(uuid.uuid4())
        connection.execute(SUBJECTS.insert().values(id=subject, name=name, created=time.time()))
        note(connection, actor, "add subject", subject)
        return subject

    def _repeated(self, request: str, digest: str) -> Face | None:
        """The face that a request enrolled before."""
        with self._database.reading() as connection:
            row = connection.execute(REQUESTS.select().where(REQUESTS.c.key == request)).one_or_none()
        if row is None:
            return None
        if not hmac.compare_digest(row.digest, digest):
            raise GalleryError(f"request key {request!r} was used for another face; every enrolment needs its own")
        return Face(row.face, self.owners([row.face]).get(row.face, ""))

    def _delete_faces(self, connection: sa.Connection, which: Any) -> int:
        faces = list(connection.scalars(sa.select(FACES.c.id).where(which)))
        for first in range(0, len(faces), _BATCH):
            part = faces[first : first + _BATCH]
            connection.execute(REQUESTS.delete().where(REQUESTS.c.face.in_(part)))
            connection.execute(FACES.delete().where(FACES.c.id.in_(part)))
        self._tell(connection, faces)
        return len(faces)

    def _tell(self, connection: sa.Connection, faces: Sequence[str]) -> None:
        """Write down that faces changed, for the indexes of all servers."""
        if not faces:
            return
        connection.execute(CHANGES.insert(), [{"face": face} for face in faces])


def _subject_id(connection: sa.Connection, name: str) -> str | None:
    found: str | None = connection.scalar(sa.select(SUBJECTS.c.id).where(SUBJECTS.c.name == name))
    return found


def _request_digest(subject: str, content: bytes) -> str:
    name = subject.encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + content).hexdigest()


__all__ = ["ApiKey", "AuditRow", "Change", "Face", "Gallery", "Role"]
