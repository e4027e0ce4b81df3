"""API keys of a gallery: who may use it, and for what."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum

from ppfr.serving.gallery.database import KEYS, Database, checked_name, note
from ppfr.util.errors import GalleryError


class Role(StrEnum):
    """What an API key permits; `admin` permits everything."""

    ENROL = "enrol"
    RECOGNISE = "recognise"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """An API key without its text, which only the client has."""

    id: str
    name: str
    role: Role


class ApiKeys:
    """A gallery's API keys, of which the database holds digests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, role: Role | str, actor: str = "") -> tuple[ApiKey, str]:
        """A new API key and its text, which cannot be read again. Raises GalleryError for an unknown role."""
        secret = secrets.token_urlsafe(32)
        key = ApiKey(str(uuid.uuid4()), checked_name(name), _role(role))
        with self._database.writing() as connection:
            values = {"id": key.id, "name": key.name, "role": str(key.role), "digest": _digest(secret)}
            connection.execute(KEYS.insert().values(**values, created=time.time()))
            note(connection, actor, f"create {key.role} key", key.id)
        return key, secret

    def authenticate(self, secret: str) -> ApiKey | None:
        """The API key with this text, or None."""
        digest = _digest(secret)
        with self._database.reading() as connection:
            row = connection.execute(KEYS.select().where(KEYS.c.digest == digest)).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, digest):
            return None
        return ApiKey(row.id, row.name, Role(row.role))

    def all(self) -> list[ApiKey]:
        """All API keys, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(KEYS.select().order_by(KEYS.c.created, KEYS.c.id))
            return [ApiKey(row.id, row.name, Role(row.role)) for row in rows]

    def revoke(self, key: str, actor: str = "") -> bool:
        """Delete an API key by its id; False if there is none."""
        with self._database.writing() as connection:
            found = bool(connection.execute(KEYS.delete().where(KEYS.c.id == key)).rowcount)
            if found:
                note(connection, actor, "revoke key", key)
        return found


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        raise GalleryError(f"role {role!r}; expected {', '.join(Role)}") from error


def _digest(secret: str) -> str:
    # 256 random bits need no salt and no slow hash
    return hashlib.sha256(secret.encode()).hexdigest()
