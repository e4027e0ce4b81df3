"""API keys of a gallery: who may ask it, and for what."""

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
    """What an API key is for; `admin` may do everything."""

    ENROL = "enrol"
    RECOGNISE = "recognise"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """A key that a client shows; the key itself is known to the client alone."""

    id: str
    name: str
    role: Role


class ApiKeys:
    """The part of a gallery that knows API keys, by their digests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_api_key(self, name: str, role: Role | str, actor: str = "") -> tuple[ApiKey, str]:
        """A new API key and its text, which is shown this once: the database holds a digest."""
        secret = secrets.token_urlsafe(32)
        key = ApiKey(str(uuid.uuid4()), checked_name(name), _role(role))
        with self._database.writing() as connection:
            values = {"id": key.id, "name": key.name, "role": str(key.role), "digest": _digest(secret)}
            connection.execute(KEYS.insert().values(**values, created=time.time()))
            note(connection, actor, f"create {key.role} key", key.id)
        return key, secret

    def api_key(self, secret: str) -> ApiKey | None:
        """The API key with this text, or None."""
        digest = _digest(secret)
        with self._database.reading() as connection:
            row = connection.execute(KEYS.select().where(KEYS.c.digest == digest)).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, digest):
            return None
        return ApiKey(row.id, row.name, Role(row.role))

    def api_keys(self) -> list[ApiKey]:
        """All API keys, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(KEYS.select().order_by(KEYS.c.created, KEYS.c.id))
            return [ApiKey(row.id, row.name, Role(row.role)) for row in rows]

    def revoke_api_key(self, key: str, actor: str = "") -> bool:
        """Make an API key useless, by its id; False if there is none."""
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
