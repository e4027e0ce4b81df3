"""The gallery: who is enrolled, in a database that keeps templates encrypted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import sqlalchemy as sa
from torch import Tensor

from ppfr.serving.crypto.templates import TemplateKind, TemplateProtection
from ppfr.serving.gallery.api_keys import ApiKeys
from ppfr.serving.gallery.changes import ChangeFeed
from ppfr.serving.gallery.database import AUDIT, FACES, REQUESTS, SETTINGS, Database, create_tables
from ppfr.serving.gallery.faces import Faces
from ppfr.serving.gallery.renewal import Renewal
from ppfr.serving.gallery.subjects import Subjects
from ppfr.serving.gallery.vault import KIND, TEMPLATE_KEY, Vault, template_key
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

_CONTRACT, _SIZE = "contract", "template size"


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

    Its parts are `subjects`, `faces`, `changes` (for search indexes), `api_keys` and `keys` (renewal of keys). A
    template is bound to the deployment's contract and to its own row: it opens nowhere else. Deleted templates are
    overwritten (SQLite) and leave the index of every server within its polling interval. Without a keyring everything
    but templates can be read. `templates` chooses, for a new gallery, what it stores of an embedding (plain if None);
    all but plain templates need `template_keys`. Raises GalleryError for a database of another deployment or with other
    templates, or that does not answer.
    """

    def __init__(
        self,
        url: str,
        keyring: Keyring | None,
        contract: str,
        size: int,
        *,
        templates: TemplateKind | str | None = None,
        template_keys: Keyring | None = None,
    ) -> None:
        self.contract, self.size = contract, size
        if keyring is not None and template_keys is not None and set(keyring.ids) & set(template_keys.ids):
            raise GalleryError(
                "one key both encrypts templates and makes them, so that its owner could undo a reissue; give another "
                "template key"
            )
        self._database = Database(url)
        with self._database.reachable():
            known = self._claim(templates, template_keys)
        self._vault = Vault(
            keyring, TemplateProtection(known[KIND], size, template_keys), contract, known[TEMPLATE_KEY]
        )
        self.api_keys = ApiKeys(self._database)
        self.subjects = Subjects(self._database)
        self.faces = Faces(self._database, self._vault)
        self.changes = ChangeFeed(self._database, self._vault)
        self.keys = Renewal(self._database, self._vault)

    @classmethod
    def existing(cls, url: str, keyring: Keyring | None = None, template_keys: Keyring | None = None) -> Self:
        """The gallery that a database holds, of any deployment; raises GalleryError if it holds none."""
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
        """Close the database's connections."""
        self._database.close()

    @property
    def templates(self) -> TemplateKind:
        """What is stored of an embedding."""
        return self._vault.protection.kind

    @property
    def template_key(self) -> str:
        """Id of the template key that this process compares under; "" for plain templates.

        Where templates can be carried over, a reissue by another process does not change it.
        """
        if self._vault.protection.exact:
            return self._vault.key
        with self._database.reading() as connection:
            return template_key(connection)

    def protect(self, embeddings: Tensor) -> Tensor:
        """Templates (N,D) of embeddings (N,D), to be compared with stored ones."""
        return self._vault.protection.protect(embeddings, self.template_key)

    def audit(self, limit: int = 1000) -> list[AuditRow]:
        """What was done, newest first."""
        chosen = AUDIT.select().order_by(AUDIT.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [AuditRow(*row[1:]) for row in connection.execute(chosen)]

    def damage(self) -> list[str]:
        """What is wrong in the database itself: SQLite's own check, and requests whose faces are missing."""
        chosen = sa.select(sa.func.count()).select_from(REQUESTS)
        with self._database.reading() as connection:
            lost = int(connection.scalar(chosen.where(REQUESTS.c.face.not_in(sa.select(FACES.c.id)))) or 0)
        return [f"{lost} request keys of faces that are gone"] * bool(lost) + self._database.damage()

    def ping(self) -> None:
        """Raise what keeps the database from answering."""
        with self._database.reading() as connection:
            connection.scalar(sa.select(sa.literal(1)))

    def _claim(self, templates: TemplateKind | str | None, template_keys: Keyring | None) -> dict[str, str]:
        """Mark a new database as this deployment's, or check that it is; returns the settings in it."""
        settings = {_CONTRACT: self.contract, _SIZE: str(self.size)}
        with self._database.writing() as connection:
            create_tables(connection)
            known = {row.name: row.value for row in connection.execute(SETTINGS.select())}
            if not known:
                made = TemplateProtection(templates or TemplateKind.PLAIN, self.size, template_keys)
                known = settings | {KIND: str(made.kind), TEMPLATE_KEY: made.current}
                connection.execute(SETTINGS.insert(), [{"name": n, "value": v} for n, v in known.items()])
        changed = [
            f"{name} {known.get(name)!r}, not {value!r}" for name, value in settings.items() if known.get(name) != value
        ]
        if changed:
            raise GalleryError(
                f"the gallery belongs to another deployment: {', '.join(changed)}. Templates of two deployments cannot "
                "be compared; give another database and enrol again"
            )
        if templates is not None and known[KIND] != templates:
            raise GalleryError(
                f"the gallery's templates are {known[KIND]}, not {templates}, as was chosen when it was made; give "
                "another database and enrol again"
            )
        return known
