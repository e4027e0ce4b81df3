"""The gallery: who is enrolled, in a database that keeps templates encrypted and every change for its readers."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import sqlalchemy as sa
import torch
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from torch import Tensor

from ppfr.errors import GalleryError
from ppfr.serving.keyring import Keyring, Sealed

_METADATA = sa.MetaData()
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOST_NAME = 255
_BATCH = 1000
# a number of our own for PostgreSQL's lock
_WRITERS = 0x70706672
_CONTRACT, _SIZE, _CURRENT = "contract", "template size", "key"

_SETTINGS = sa.Table(
    "settings",
    _METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
)
_SUBJECTS = sa.Table(
    "subjects",
    _METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(MOST_NAME), unique=True, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_FACES = sa.Table(
    "faces",
    _METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("subject", sa.String(36), sa.ForeignKey("subjects.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("key_id", sa.String(12), nullable=False, index=True),
    sa.Column("template", sa.LargeBinary, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_REQUESTS = sa.Table(
    "requests",
    _METADATA,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("face", sa.String(36), nullable=False),
    sa.Column("created", sa.Float, nullable=False, index=True),
)
_CHANGES = sa.Table(
    "changes",
    _METADATA,
    sa.Column("number", _SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("face", sa.String(36), nullable=False),
    sqlite_autoincrement=True,
)
_KEYS = sa.Table(
    "api_keys",
    _METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(MOST_NAME), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), unique=True, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_AUDIT = sa.Table(
    "audit",
    _METADATA,
    sa.Column("number", _SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(36), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(36), nullable=False),
    sa.Column("faces", sa.Integer, nullable=False),
)


class Role(StrEnum):
    """What an API key is for; `admin` may do everything."""

    ENROL = "enrol"
    RECOGNISE = "recognise"
    ADMIN = "admin"


@dataclass(frozen=True)
class Face:
    """One enrolled template, without its values."""

    id: str
    subject: str


@dataclass(frozen=True)
class ApiKey:
    """A key that a client shows; the key itself is known to the client alone."""

    id: str
    name: str
    role: Role


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


class Gallery:
    """Subjects and their encrypted templates of one deployment, in any database that SQLAlchemy knows.

    A template is bound to the deployment's contract and to its own row: it opens nowhere else. Whatever returns has
    been committed to disk. Deleted templates are overwritten (SQLite) and gone from the index of every server within
    its polling interval. Without a keyring everything but templates can be had. Raises GalleryError for a database of
    another deployment, or that does not answer.
    """

    def __init__(self, url: str, keyring: Keyring | None, contract: str, size: int) -> None:
        self.contract, self.size = contract, size
        self._keyring = keyring
        self._engine = _engine(url)
        with _reachable(self._engine):
            self._claim({_CONTRACT: contract, _SIZE: str(size)})

    @classmethod
    def existing(cls, url: str, keyring: Keyring | None = None) -> Self:
        """The gallery that a database holds, whatever its deployment; raises GalleryError if it holds none."""
        engine = _engine(url)
        file = engine.url.database if engine.dialect.name == "sqlite" else None
        with _reachable(engine):
            # SQLite would make an empty file
            absent = (file is not None and not Path(file).is_file()) or not sa.inspect(engine).has_table(_SETTINGS.name)
            if absent:
                raise GalleryError(
                    f"{_shown(engine)} holds no gallery; `ppfr serve DEPLOYMENT --gallery ... --init` makes one"
                )
            with engine.connect() as connection:
                known = {row.name: row.value for row in connection.execute(_SETTINGS.select())}
        engine.dispose()
        return cls(url, keyring, known[_CONTRACT], int(known[_SIZE]))

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # --- subjects -----------------------------------------------------------------------------------------------
    def subjects(self) -> list[str]:
        """Names of all subjects, sorted."""
        with self._reading() as connection:
            return list(connection.scalars(sa.select(_SUBJECTS.c.name).order_by(_SUBJECTS.c.name)))

    def add_subject(self, name: str, actor: str = "") -> None:
        """Enrol a name without a face; one that is there already stays as it is."""
        with self._writing() as connection:
            self._subject(connection, name, actor)

    def rename_subject(self, name: str, new: str, actor: str = "") -> bool:
        """Give a subject another name; if that one exists the faces move to it. False if there is no such subject."""
        new = _checked_name(new)
        with self._writing() as connection:
            source = _subject_id(connection, name)
            if source is None:
                return False
            target = _subject_id(connection, new)
            if target is None:
                connection.execute(_SUBJECTS.update().where(_SUBJECTS.c.id == source).values(name=new))
            elif target != source:
                connection.execute(_FACES.update().where(_FACES.c.subject == source).values(subject=target))
                connection.execute(_SUBJECTS.delete().where(_SUBJECTS.c.id == source))
            _note(connection, actor, "rename subject", source)
            return True

    def delete_subject(self, name: str, actor: str = "") -> int | None:
        """Remove a subject and its templates for good; returns how many, or None if there is no such subject."""
        with self._writing() as connection:
            subject = _subject_id(connection, name)
            if subject is None:
                return None
            count = self._delete_faces(connection, _FACES.c.subject == subject)
            connection.execute(_SUBJECTS.delete().where(_SUBJECTS.c.id == subject))
            _note(connection, actor, "delete subject", subject, count)
        self._scrub()
        return count

    def delete_all_subjects(self, actor: str = "") -> int:
        """Remove every subject and template; returns how many subjects."""
        with self._writing() as connection:
            faces = self._delete_faces(connection, sa.true())
            count = int(connection.execute(_SUBJECTS.delete()).rowcount)
            _note(connection, actor, "delete all subjects", "", faces)
        self._scrub()
        return count

    # --- faces --------------------------------------------------------------------------------------------------
    def enrol(
        self, subject: str, template: Tensor, *, request: str | None = None, content: bytes = b"", actor: str = ""
    ) -> Face:
        """Store a template (D,) under a subject, who is added if need be.

        With a `request` key, repeating the call with the same subject and `content` (the message that the template was
        made from) returns the same face instead of storing it twice. Raises GalleryError for a template of another
        length, and for a request key that came with something else.
        """
        values = self._encoded(template)
        name = _checked_name(subject)
        digest = None if request is None else _request_digest(name, content)
        if request is not None and digest is not None:
            known = self._repeated(request, digest)
            if known is not None:
                return known
        face = str(uuid.uuid4())
        try:
            with self._writing() as connection:
                sealed = self._ring_for_writing(connection).seal(values, self._context(face))
                owner = self._subject(connection, name, actor)
                connection.execute(
                    _FACES.insert().values(
                        id=face, subject=owner, key_id=sealed.key_id, template=sealed.data, created=time.time()
                    )
                )
                if request is not None:
                    row = {"key": request, "digest": digest, "face": face, "created": time.time()}
                    connection.execute(_REQUESTS.insert().values(row))
                self._tell(connection, [face])
                _note(connection, actor, "enrol face", owner, 1)
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
            sa.select(_FACES.c.id, _SUBJECTS.c.name)
            .join(_SUBJECTS, _SUBJECTS.c.id == _FACES.c.subject)
            .order_by(_FACES.c.created, _FACES.c.id)
            .offset(offset)
        )
        if subject is not None:
            chosen = chosen.where(_SUBJECTS.c.name == subject)
        with self._reading() as connection:
            return [Face(*row) for row in connection.execute(chosen if limit is None else chosen.limit(limit))]

    def count(self, subject: str | None = None) -> int:
        """How many faces are enrolled."""
        chosen = sa.select(sa.func.count()).select_from(_FACES.join(_SUBJECTS, _SUBJECTS.c.id == _FACES.c.subject))
        if subject is not None:
            chosen = chosen.where(_SUBJECTS.c.name == subject)
        with self._reading() as connection:
            return int(connection.scalar(chosen) or 0)

    def owners(self, faces: Sequence[str]) -> dict[str, str]:
        """Subjects' names by face; faces that are gone are left out."""
        chosen = sa.select(_FACES.c.id, _SUBJECTS.c.name).join(_SUBJECTS, _SUBJECTS.c.id == _FACES.c.subject)
        with self._reading() as connection:
            rows = connection.execute(chosen.where(_FACES.c.id.in_(list(faces))))
            return {str(face): str(name) for face, name in rows}

    def template(self, face: str) -> Tensor | None:
        """A template (D,), float32; None for a face that is not there."""
        with self._reading() as connection:
            row = connection.execute(_TEMPLATES.where(_FACES.c.id == face)).one_or_none()
        return None if row is None else self._decoded(*row)

    def delete_face(self, face: str, actor: str = "") -> Face | None:
        """Remove a face for good; None if it is not there."""
        with self._writing() as connection:
            chosen = sa.select(_SUBJECTS.c.id, _SUBJECTS.c.name).join(_FACES, _SUBJECTS.c.id == _FACES.c.subject)
            owner = connection.execute(chosen.where(_FACES.c.id == face)).one_or_none()
            if owner is None:
                return None
            self._delete_faces(connection, _FACES.c.id == face)
            _note(connection, actor, "delete face", owner[0], 1)
        self._scrub()
        return Face(face, owner[1])

    def delete_faces(self, subject: str, actor: str = "") -> int:
        """Remove all faces of a subject, who stays; returns how many."""
        with self._writing() as connection:
            owner = _subject_id(connection, subject)
            count = 0 if owner is None else self._delete_faces(connection, _FACES.c.subject == owner)
            if count:
                _note(connection, actor, "delete faces", owner or "", count)
        self._scrub()
        return count

    # --- for indexes --------------------------------------------------------------------------------------------
    def snapshot(self) -> tuple[int, Iterator[tuple[list[str], Tensor]]]:
        """The number of the last change, and all templates in batches: faces and templates (N,D).

        Whoever reads the batches and then asks for the changes after that number has missed nothing.
        """
        with self._reading() as connection:
            last = int(connection.scalar(sa.select(sa.func.max(_CHANGES.c.number))) or 0)
        return last, self._batches()

    def changes(self, after: int) -> list[Change]:
        """What was enrolled and removed after a change, in order; one entry a face, with what it is now."""
        with self._reading() as connection:
            chosen = _CHANGES.select().where(_CHANGES.c.number > after).order_by(_CHANGES.c.number).limit(_BATCH)
            rows = connection.execute(chosen).all()
            names = list({row.face for row in rows})
            held = {row[0]: row for row in connection.execute(_TEMPLATES.where(_FACES.c.id.in_(names)))}
        latest = {row.face: row.number for row in rows}
        return [
            Change(number, face, self._decoded(*held[face]) if face in held else None)
            for face, number in sorted(latest.items(), key=lambda pair: pair[1])
        ]

    def _batches(self) -> Iterator[tuple[list[str], Tensor]]:
        last = ""
        while True:
            with self._reading() as connection:
                chosen = _TEMPLATES.where(_FACES.c.id > last).order_by(_FACES.c.id).limit(_BATCH)
                rows = connection.execute(chosen).all()
            if not rows:
                return
            last = rows[-1][0]
            yield [row[0] for row in rows], torch.stack([self._decoded(*row) for row in rows])

    # --- keys ---------------------------------------------------------------------------------------------------
    def rotate(self, keyring: Keyring, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Encrypt anew what older keys encrypted, in small steps while others read; returns how many.

        The ring must hold the old keys, too. Stopped half-way, it goes on when called again.
        """
        self._keyring = keyring
        with self._writing() as connection:
            # from here on servers that know older keys only enrol nothing under them
            connection.execute(_SETTINGS.delete().where(_SETTINGS.c.name == _CURRENT))
            connection.execute(_SETTINGS.insert().values(name=_CURRENT, value=keyring.current))
        changed, total = 0, sum(count for key, count in self.keys_in_use().items() if key != keyring.current)
        while True:
            with self._writing() as connection:
                rows = connection.execute(_TEMPLATES.where(_FACES.c.key_id != keyring.current).limit(_BATCH)).all()
                for face, key_id, data in rows:
                    context = self._context(face)
                    sealed = keyring.seal(keyring.open(Sealed(key_id, data), context), context)
                    values = {"key_id": sealed.key_id, "template": sealed.data}
                    connection.execute(_FACES.update().where(_FACES.c.id == face).values(values))
                changed += len(rows)
            progress(changed, total)
            if not rows:
                self._scrub()
                return changed

    def keys_in_use(self) -> dict[str, int]:
        """How many templates each key encrypts, by the key's id."""
        chosen = sa.select(_FACES.c.key_id, sa.func.count()).group_by(_FACES.c.key_id)
        with self._reading() as connection:
            return {str(key): int(count) for key, count in connection.execute(chosen)}

    def create_api_key(self, name: str, role: Role | str, actor: str = "") -> tuple[ApiKey, str]:
        """A new API key and its text, which is shown this once: the database holds a digest."""
        secret = secrets.token_urlsafe(32)
        key = ApiKey(str(uuid.uuid4()), _checked_name(name), _role(role))
        with self._writing() as connection:
            values = {"id": key.id, "name": key.name, "role": str(key.role), "digest": _digest(secret)}
            connection.execute(_KEYS.insert().values(**values, created=time.time()))
            _note(connection, actor, f"create {key.role} key", key.id)
        return key, secret

    def api_key(self, secret: str) -> ApiKey | None:
        """The API key with this text, or None."""
        digest = _digest(secret)
        with self._reading() as connection:
            row = connection.execute(_KEYS.select().where(_KEYS.c.digest == digest)).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, digest):
            return None
        return ApiKey(row.id, row.name, Role(row.role))

    def api_keys(self) -> list[ApiKey]:
        """All API keys, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(_KEYS.select().order_by(_KEYS.c.created, _KEYS.c.id))
            return [ApiKey(row.id, row.name, Role(row.role)) for row in rows]

    def revoke_api_key(self, key: str, actor: str = "") -> bool:
        """Make an API key useless, by its id; False if there is none."""
        with self._writing() as connection:
            found = bool(connection.execute(_KEYS.delete().where(_KEYS.c.id == key)).rowcount)
            if found:
                _note(connection, actor, "revoke key", key)
        return found

    def audit(self, limit: int = 1000) -> list[AuditRow]:
        """What was done, newest first."""
        chosen = _AUDIT.select().order_by(_AUDIT.c.number.desc()).limit(limit)
        with self._reading() as connection:
            return [
                AuditRow(row.at, row.actor, row.action, row.subject, row.faces) for row in connection.execute(chosen)
            ]

    def damage(self) -> list[str]:
        """What is amiss in the database itself: SQLite's own check, and repeated requests for faces that are gone."""
        chosen = sa.select(sa.func.count()).select_from(_REQUESTS)
        with self._reading() as connection:
            lost = int(connection.scalar(chosen.where(_REQUESTS.c.face.not_in(sa.select(_FACES.c.id)))) or 0)
            found = [f"{lost} request keys of faces that are gone"] if lost else []
            if connection.dialect.name == "sqlite":
                told = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
                found += [f"SQLite: {line}" for line in told if line != "ok"]
        return found

    def ping(self) -> None:
        """Raise whatever keeps the database from answering."""
        with self._reading() as connection:
            connection.scalar(sa.select(sa.literal(1)))

    # --- inside -------------------------------------------------------------------------------------------------
    def _claim(self, settings: dict[str, str]) -> None:
        """Mark a fresh database as this deployment's, or check that it is."""
        with self._writing() as connection:
            _METADATA.create_all(connection)
            known = {row.name: row.value for row in connection.execute(_SETTINGS.select())}
            if not known:
                connection.execute(_SETTINGS.insert(), [{"name": n, "value": v} for n, v in settings.items()])
                return
        changed = sorted(name for name, value in settings.items() if known.get(name) != value)
        if changed:
            told = ", ".join(f"{name} {known.get(name)!r}, not {settings[name]!r}" for name in changed)
            raise GalleryError(
                f"the gallery belongs to another deployment: {told}. Templates of two deployments cannot be compared; "
                "give another database and enrol anew"
            )

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                # one writer at a time, as in SQLite: changes are numbered in the order in which they become visible
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
            yield connection

    @property
    def _ring(self) -> Keyring:
        if self._keyring is None:
            raise GalleryError("the gallery was opened without its keys; templates need them")
        return self._keyring

    def _ring_with(self, key: str) -> Keyring:
        """The ring, read anew if it lacks a key: another process may have rotated."""
        if key not in self._ring.ids:
            self._keyring = self._ring.again()
        return self._ring

    def _ring_for_writing(self, connection: sa.Connection) -> Keyring:
        """The ring, if it knows the key of the last rotation: what an older one encrypts might never open again."""
        current = connection.scalar(sa.select(_SETTINGS.c.value).where(_SETTINGS.c.name == _CURRENT))
        if current is not None and current not in self._ring_with(current).ids:
            raise GalleryError(
                f"the gallery was rotated to key {current!r}, which is not in the ring of {self._ring.ids}; give this "
                "server the new key file"
            )
        return self._ring

    def _subject(self, connection: sa.Connection, name: str, actor: str) -> str:
        """The id of a subject, who is added if need be."""
        name = _checked_name(name)
        known = _subject_id(connection, name)
        if known is not None:
            return known
        subject = str(uuid.uuid4())
        connection.execute(_SUBJECTS.insert().values(id=subject, name=name, created=time.time()))
        _note(connection, actor, "add subject", subject)
        return subject

    def _repeated(self, request: str, digest: str) -> Face | None:
        """The face that a request enrolled before."""
        with self._reading() as connection:
            row = connection.execute(_REQUESTS.select().where(_REQUESTS.c.key == request)).one_or_none()
        if row is None:
            return None
        if not hmac.compare_digest(row.digest, digest):
            raise GalleryError(f"request key {request!r} was used for another face; every enrolment needs its own")
        return Face(row.face, self.owners([row.face]).get(row.face, ""))

    def _delete_faces(self, connection: sa.Connection, which: Any) -> int:
        faces = list(connection.scalars(sa.select(_FACES.c.id).where(which)))
        for first in range(0, len(faces), _BATCH):
            part = faces[first : first + _BATCH]
            connection.execute(_REQUESTS.delete().where(_REQUESTS.c.face.in_(part)))
            connection.execute(_FACES.delete().where(_FACES.c.id.in_(part)))
        self._tell(connection, faces)
        return len(faces)

    def _tell(self, connection: sa.Connection, faces: Sequence[str]) -> None:
        """Write down that faces changed, for the indexes of all servers."""
        if not faces:
            return
        connection.execute(_CHANGES.insert(), [{"face": face} for face in faces])

    def _scrub(self) -> None:
        """Let SQLite's log forget deleted templates as well."""
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def _context(self, face: str) -> str:
        return f"ppfr template {self.contract} {face}"

    def _encoded(self, template: Tensor) -> bytes:
        values = template.detach().float().cpu()
        norm = float(values.norm()) if values.ndim == 1 else 0.0
        if values.shape != (self.size,) or not np.isfinite(norm) or norm == 0:
            raise GalleryError(
                f"a template of shape {tuple(template.shape)} and length {norm:g}; expected ({self.size},), finite, "
                "not zero"
            )
        return bytes((values / norm).half().numpy().astype("<f2").tobytes())

    def _decoded(self, face: str, key_id: str, data: bytes) -> Tensor:
        text = self._ring_with(key_id).open(Sealed(key_id, bytes(data)), self._context(face))
        values = np.frombuffer(text, dtype="<f2")
        return torch.from_numpy(values.astype(np.float32))


_TEMPLATES = sa.select(_FACES.c.id, _FACES.c.key_id, _FACES.c.template)


def _engine(url: str) -> sa.Engine:
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise GalleryError(
            f"gallery {hide_password(url)!r}: {error}; expected for example sqlite:///gallery.db or postgresql+psycopg://HOST/NAME"
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def hide_password(url: str) -> str:
    """A database's address as it may be shown."""
    return re.sub(r"(//[^/@:]*):[^/]*@", r"\1:***@", url)


def _shown(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


@contextmanager
def _reachable(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        engine.dispose()
        raise GalleryError(f"gallery {_shown(engine)} cannot be used: {error}") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # transactions are begun by `_begin_sqlite`, not by the driver
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # a transaction that begins by reading and then writes could be refused half-way
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _subject_id(connection: sa.Connection, name: str) -> str | None:
    found: str | None = connection.scalar(sa.select(_SUBJECTS.c.id).where(_SUBJECTS.c.name == name))
    return found


def _note(connection: sa.Connection, actor: str, action: str, subject: str, faces: int = 0) -> None:
    values = {"at": time.time(), "actor": actor, "action": action, "subject": subject, "faces": faces}
    connection.execute(_AUDIT.insert().values(values))


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > MOST_NAME or any(ord(character) < 32 for character in name):
        raise GalleryError(f"name {name[:40]!r}: expected 1 to {MOST_NAME} printable characters")
    return name


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        raise GalleryError(f"role {role!r}; expected {', '.join(Role)}") from error


def _request_digest(subject: str, content: bytes) -> str:
    name = subject.encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + content).hexdigest()


def _digest(secret: str) -> str:
    # 256 random bits need no salt and no slow hash
    return hashlib.sha256(secret.encode()).hexdigest()


__all__ = ["ApiKey", "AuditRow", "Change", "Face", "Gallery", "Role"]
