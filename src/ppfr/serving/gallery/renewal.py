"""Key renewal: new keys for stored templates, in small steps while servers run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ppfr.serving.crypto.templates import TemplateKind
from ppfr.serving.gallery.changes import remove_faces
from ppfr.serving.gallery.database import FACES, Database, note, write_setting
from ppfr.serving.gallery.vault import CURRENT, TEMPLATE_KEY, TEMPLATES, Vault
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

Progress = Callable[[int, int], None]
_CHUNK = 1000


def _silent(done: int, total: int) -> None:
    pass


class Renewal:
    """The keys of a gallery's templates: those that encrypt them, and those that made them from embeddings."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault

    def encryption_keys(self) -> dict[str, int]:
        """How many templates each key encrypts, by the key's id."""
        return self._in_use(FACES.c.key_id)

    def template_keys(self) -> dict[str, int]:
        """How many templates are under each template key, by the key's id."""
        return self._in_use(FACES.c.template_key)

    def rotate(self, keyring: Keyring, progress: Progress = _silent) -> int:
        """Encrypt with the ring's current key what older keys encrypted; returns how many templates.

        The ring must hold the old keys, too. A rotation that was stopped continues when called again.
        """
        self._vault.ring = keyring
        with self._database.writing() as connection:
            # from here on servers that know only older keys enrol nothing under them
            write_setting(connection, CURRENT, keyring.current)
        return self._in_steps(FACES.c.key_id != keyring.current, self._vault.reencrypted, progress)

    def reissue(self, keyring: Keyring, progress: Progress = _silent) -> int:
        """Put all templates under the current key of a ring of template keys; returns how many were carried over.

        The ring must hold the old keys, too. A reissue that was stopped continues when called again. Templates that
        cannot be carried over are removed, and their subjects stay. Raises GalleryError for plain templates.
        """
        protection = self._vault.protection
        if protection.kind is TemplateKind.PLAIN:
            raise GalleryError(
                "plain templates have no key: they cannot be reissued. Make a gallery with rotated or slerp ones, and "
                "enrol again"
            )
        protection.keyring = keyring
        stale = FACES.c.template_key != keyring.current
        with self._database.writing() as connection:
            write_setting(connection, TEMPLATE_KEY, keyring.current)
            # in the same transaction: templates of two keys that cannot be compared never lie side by side
            removed = 0 if protection.exact else remove_faces(connection, stale)
            note(connection, "", "reissue templates", "", removed)
        return self._in_steps(stale, self._vault.carried_over, progress)

    def _in_use(self, column: sa.Column[str]) -> dict[str, int]:
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
            return {str(key): int(count) for key, count in rows}

    def _in_steps(
        self,
        stale: sa.ColumnElement[bool],
        renewed: Callable[[sa.Connection, Any], dict[str, str | bytes]],
        progress: Progress,
    ) -> int:
        with self._database.reading() as connection:
            total = int(connection.scalar(sa.select(sa.func.count()).select_from(FACES).where(stale)) or 0)
        changed = 0
        while True:
            with self._database.writing() as connection:
                rows = connection.execute(TEMPLATES.where(stale).limit(_CHUNK)).all()
                for row in rows:
                    connection.execute(FACES.update().where(FACES.c.id == row.id).values(renewed(connection, row)))
            changed += len(rows)
            progress(changed, total)
            if not rows:
                self._database.scrub()
                return changed
