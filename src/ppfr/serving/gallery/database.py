"""The gallery's tables, and transactions on any database that SQLAlchemy knows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ppfr.util.errors import GalleryError

METADATA = sa.MetaData()
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOST_NAME = 255
# the number of our advisory lock in PostgreSQL
_WRITERS = 0x70706672

SETTINGS = sa.Table(
    "settings",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
)
SUBJECTS = sa.Table(
    "subjects",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(MOST_NAME), unique=True, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
FACES = sa.Table(
    "faces",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("subject", sa.String(36), sa.ForeignKey("subjects.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("key_id", sa.String(12), nullable=False, index=True),
    sa.Column("template_key", sa.String(12), nullable=False),
    sa.Column("template", sa.LargeBinary, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
REQUESTS = sa.Table(
    "requests",
    METADATA,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("face", sa.String(36), nullable=False),
    sa.Column("created", sa.Float, nullable=False, index=True),
)
CHANGES = sa.Table(
    "changes",
    METADATA,
    sa.Column("number", _SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("face", sa.String(36), nullable=False),
    sqlite_autoincrement=True,
)
KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(MOST_NAME), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), unique=True, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("number", _SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(36), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(36), nullable=False),
    sa.Column("faces", sa.Integer, nullable=False),
)


class Database:
    """Transactions on the tables, with one writer at a time; a finished transaction is on disk.

    Raises GalleryError for an address that names no database, and for a database that does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=True)
        except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
            raise GalleryError(
                f"gallery {hide_password(url)!r}: {error}; expected for example sqlite:///gallery.db or "
                "postgresql+psycopg://HOST/NAME"
            ) from error
        if self.is_sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    def __str__(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite."""
        return self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end; other writers wait."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                # one writer at a time, as in SQLite: changes are numbered in the order in which they become visible
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
            yield connection

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Turns errors of the database into GalleryError, and closes it."""
        try:
            yield
        except SQLAlchemyError as error:
            self.close()
            raise GalleryError(f"gallery {self} cannot be used: {error}") from error

    def holds_gallery(self) -> bool:
        """Whether the tables exist; creates no file."""
        file = self._engine.url.database if self.is_sqlite else None
        if file is not None and not Path(file).is_file():
            return False
        return sa.inspect(self._engine).has_table(SETTINGS.name)

    def settings(self) -> dict[str, str]:
        """The gallery's settings by name."""
        with self.reading() as connection:
            return {row.name: row.value for row in connection.execute(SETTINGS.select())}

    def scrub(self) -> None:
        """Remove deleted templates from SQLite's log as well."""
        if self.is_sqlite:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def damage(self) -> list[str]:
        """Problems that SQLite's own check finds; PostgreSQL has no such check."""
        if not self.is_sqlite:
            return []
        with self.reading() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
            return [f"SQLite: {line}" for line in found if line != "ok"]


def hide_password(url: str) -> str:
    """A database's address without its password."""
    return re.sub(r"(//[^/@:]*):[^/]*@", r"\1:***@", url)


def create_tables(connection: sa.Connection) -> None:
    """Make the tables that are absent."""
    METADATA.create_all(connection)


def setting(connection: sa.Connection, name: str) -> str | None:
    """A setting's value, or None."""
    found: str | None = connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == name))
    return found


def write_setting(connection: sa.Connection, name: str, value: str) -> None:
    """Set a setting."""
    connection.execute(SETTINGS.delete().where(SETTINGS.c.name == name))
    connection.execute(SETTINGS.insert().values(name=name, value=value))


def note(connection: sa.Connection, actor: str, action: str, subject: str, faces: int = 0) -> None:
    """Add a row to the audit."""
    values = {"at": time.time(), "actor": actor, "action": action, "subject": subject, "faces": faces}
    connection.execute(AUDIT.insert().values(values))


def checked_name(name: str) -> str:
    """The name itself; raises GalleryError for one that cannot be stored and shown."""
    if not name.strip() or len(name) > MOST_NAME or any(ord(character) < 32 for character in name):
        raise GalleryError(f"name {name[:40]!r}: expected 1 to {MOST_NAME} printable characters")
    return name


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # `_begin_sqlite` begins transactions, not the driver
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # a transaction that reads first and then writes could fail half-way
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
