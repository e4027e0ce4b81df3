"""New keys for a gallery's templates, in small steps while servers run: to encrypt, or to make them from embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ppfr.serving.gallery.database import FACES, Database, note, write_setting
from ppfr.serving.gallery.vault import CURRENT, TEMPLATE_KEY, TEMPLATES, Vault
from ppfr.util.keyring import Keyring

Told = Callable[[int, int], None]
Renewed = Callable[[sa.Connection, Any], dict[str, str | bytes]]
_STEP = 1000


def encrypt_anew(database: Database, vault: Vault, keyring: Keyring, progress: Told) -> int:
    """Encrypt with the current key of a ring what others encrypted; returns how many templates."""
    vault.ring = keyring
    with database.writing() as connection:
        # from here on servers that know older keys only enrol nothing under them
        write_setting(connection, CURRENT, keyring.current)
    return _in_steps(database, FACES.c.key_id != keyring.current, vault.encrypted_anew, progress)


def carry_over(database: Database, vault: Vault, progress: Told) -> int:
    """Put under the current template key what others are under; returns how many templates."""
    key = vault.templates.current
    with database.writing() as connection:
        write_setting(connection, TEMPLATE_KEY, key)
        note(connection, "", "reissue templates", "")
    return _in_steps(database, FACES.c.template_key != key, vault.carried_over, progress)


def _in_steps(database: Database, stale: sa.ColumnElement[bool], renewed: Renewed, progress: Told) -> int:
    with database.reading() as connection:
        total = int(connection.scalar(sa.select(sa.func.count()).select_from(FACES).where(stale)) or 0)
    changed = 0
    while True:
        with database.writing() as connection:
            rows = connection.execute(TEMPLATES.where(stale).limit(_STEP)).all()
            for row in rows:
                connection.execute(FACES.update().where(FACES.c.id == row.id).values(renewed(connection, row)))
        changed += len(rows)
        progress(changed, total)
        if not rows:
            database.scrub()
            return changed
