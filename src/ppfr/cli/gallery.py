"""`ppfr gallery ...`: administration of a server's database and keys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfr.cli.app import app, out
from ppfr.util.errors import GalleryError

if TYPE_CHECKING:
    from ppfr.serving.gallery.gallery import Gallery
    from ppfr.util.keyring import Keyring

GalleryOption = Annotated[
    str,
    typer.Option(
        envvar="PPFR_GALLERY",
        help="Database of templates as an SQLAlchemy URL: sqlite:///FILE, or postgresql+psycopg: with "
        "//USER@HOST/NAME. An address with a password belongs in the variable.",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(help="Keys that templates are encrypted with, mode 0600; by default PPFR_GALLERY_KEY is read."),
]
IndexOption = Annotated[
    str,
    typer.Option(
        help="Where to search: exact (in memory), approximate (a graph in memory, whose recall is printed), or "
        "milvus:URI (a cluster's address or a local file; it sees rotated templates only, and PPFR_MILVUS_TOKEN is its "
        "token)."
    ),
]
TemplateKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Keys that rotated and slerp templates are made with, mode 0600, another file than --key-file; by default "
        "PPFR_TEMPLATE_KEY is read, if it is set."
    ),
]
DATABASE = "sqlite:///gallery.db"

gallery_app = typer.Typer(no_args_is_help=True, help="Administer a server's gallery: API keys, encryption, checks.")
keys_app = typer.Typer(
    no_args_is_help=True, help="API keys of a gallery; changes take effect in running servers at once."
)
gallery_app.add_typer(keys_app, name="keys")
app.add_typer(gallery_app, name="gallery")


# --- API keys ----------------------------------------------------------------------------------------------------
@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="A name that describes the use of the key.")],
    role: Annotated[str, typer.Option(help="enrol (also lists and deletes), recognise, or admin (everything).")],
    gallery: GalleryOption = DATABASE,
) -> None:
    """Make an API key and print it once; the database stores a digest."""
    key, secret = _open(gallery).api_keys.create(name, role)
    _print({"id": key.id, "name": key.name, "role": key.role, "x-api-key": secret})


@keys_app.command("list")
def list_keys(gallery: GalleryOption = DATABASE) -> None:
    """List all API keys, oldest first."""
    keys = _open(gallery).api_keys.all()
    _print({"keys": [{"id": key.id, "name": key.name, "role": key.role} for key in keys]})


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, from `ppfr gallery keys list`.")],
    gallery: GalleryOption = DATABASE,
) -> None:
    """Revoke an API key."""
    if not _open(gallery).api_keys.revoke(key):
        raise GalleryError(f"there is no API key with the id {key!r}; `ppfr gallery keys list` names them")
    _print({"revoked": key})


# --- templates ---------------------------------------------------------------------------------------------------
@gallery_app.command()
def subjects(
    gallery: GalleryOption = DATABASE,
    names: Annotated[bool, typer.Option("--names", help="Also name them.")] = False,
) -> None:
    """Count the subjects and their faces."""
    opened = _open(gallery)
    known = opened.subjects.names()
    _print({"subjects": len(known), "faces": opened.faces.count()} | ({"names": known} if names else {}))


@gallery_app.command("new-key")
def new_key(file: Annotated[Path, typer.Argument(help="File to write, mode 0600.")]) -> None:
    """Make a key file. If it is lost, the templates encrypted with it are lost."""
    from ppfr.util.keyring import Keyring

    if file.exists():
        raise GalleryError(f"key file {file} exists already; templates may need it, so it is left alone")
    ring = Keyring.create()
    ring.save(file)
    _print({"key file": str(file), "key": ring.current})


@gallery_app.command()
def rotate(
    gallery: GalleryOption = DATABASE,
    key_file: KeyFileOption = None,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Afterwards remove older keys from the file; keep a copy of it for backups."),
    ] = False,
) -> None:
    """Encrypt all templates with a new key.

    A key file gets the new key in front; with PPFR_GALLERY_KEY, give it as NEW,OLD. Servers may run meanwhile: they
    read the file again when they meet the new key; with the variable, restart them. A rotation that was stopped
    continues when called again.
    """
    from ppfr.util.keyring import ENVIRONMENT, Keyring
    from ppfr.util.progress import progress_callback

    ring = Keyring.load(key_file)
    opened = _open(gallery, ring)
    ring = _with_key_to_renew_to(ring, key_file, opened.keys.encryption_keys(), ENVIRONMENT)
    with progress_callback("encrypting") as progress:
        changed = opened.keys.rotate(ring, progress)
    if forget and key_file is not None:
        ring = ring.without_old_keys()
        ring.save(key_file)
    _print({"key": ring.current, "older keys": ring.ids[:-1], "templates": changed})


@gallery_app.command()
def reissue(
    gallery: GalleryOption = DATABASE,
    key_file: KeyFileOption = None,
    template_key_file: TemplateKeyFileOption = None,
    drop_templates: Annotated[
        bool,
        typer.Option("--drop-templates", help="Remove slerp templates: everyone must enrol again."),
    ] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="Afterwards remove older template keys from the file; keep a copy of it for backups."
        ),
    ] = False,
) -> None:
    """Revoke all templates after a leak: replace the template key, so that leaked templates match nothing here.

    Rotated templates are converted and nobody enrols again. Slerp templates cannot be converted: --drop-templates
    removes them and keeps their subjects, to be enrolled again. A key file gets the new key in front; with
    PPFR_TEMPLATE_KEY, give it as NEW,OLD. Servers may run meanwhile; restart them when it is done, since until then
    they compare under the old key, in memory. A reissue that was stopped continues when called again.

    If the encryption key leaked too, also call `ppfr gallery rotate`.
    """
    from ppfr.serving.crypto.templates import ENVIRONMENT, TemplateKind
    from ppfr.util.keyring import Keyring
    from ppfr.util.progress import progress_callback

    ring = template_keys(template_key_file)
    opened = _open(gallery, Keyring.load(key_file), ring)
    if opened.templates is TemplateKind.SLERP and not drop_templates:
        raise GalleryError(
            "slerp templates do not hold what a new key would need: give --drop-templates to remove them, and enrol "
            "their subjects again"
        )
    if ring is None:
        ring = Keyring.load(template_key_file, ENVIRONMENT)
    before = opened.faces.count()
    ring = _with_key_to_renew_to(ring, template_key_file, opened.keys.template_keys(), ENVIRONMENT)
    with progress_callback("reissuing templates") as progress:
        carried = opened.keys.reissue(ring, progress)
    if forget and template_key_file is not None:
        ring = ring.without_old_keys()
        ring.save(template_key_file)
    removed = before - opened.faces.count() if opened.templates is TemplateKind.SLERP else 0
    _print(
        {"template key": ring.current, "older keys": ring.ids[:-1], "templates": carried, "templates removed": removed}
    )


@gallery_app.command()
def check(
    gallery: GalleryOption = DATABASE,
    key_file: KeyFileOption = None,
    template_key_file: TemplateKeyFileOption = None,
    index: IndexOption = "exact",
) -> None:
    """Decrypt every template, fill an index, and compare it with the database; exit status 1 for any problem.

    With milvus:URI the servers' collection is compared as it is, without repairing it.
    """
    from ppfr.serving.search.check import check_gallery
    from ppfr.util.keyring import Keyring
    from ppfr.util.progress import progress_callback

    ring = Keyring.load(key_file)
    opened = _open(gallery, ring, template_keys(template_key_file))
    with progress_callback("checking") as progress:
        report = check_gallery(opened, ring, index, progress)
    _print(report.to_dict())
    if not report.sound:
        raise typer.Exit(1)


def template_keys(file: Path | None) -> Keyring | None:
    """The ring of template keys of a file, or of the environment; None without either."""
    from ppfr.serving.crypto.templates import ENVIRONMENT
    from ppfr.util.keyring import Keyring

    return Keyring.load(file, ENVIRONMENT) if file is not None or os.environ.get(ENVIRONMENT) else None


def _with_key_to_renew_to(ring: Keyring, file: Path | None, in_use: dict[str, int], variable: str) -> Keyring:
    """The ring with a new current key, which its file has from here on, unless an earlier renewal is to go on."""
    unknown = sorted(set(in_use) - set(ring.ids))
    if unknown:
        raise GalleryError(f"templates are under keys {unknown}, which are not in the ring of {ring.ids}")
    if file is None and len(ring.ids) == 1:
        raise GalleryError(f"{variable} holds only one key; expected NEW,OLD")
    if file is not None and set(in_use) <= {ring.current}:
        ring = ring.with_new_key()
        # before anything is under it
        ring.save(file)
    return ring


def _open(url: str, keyring: Keyring | None = None, template_keys: Keyring | None = None) -> Gallery:
    from ppfr.serving.gallery.gallery import Gallery

    return Gallery.existing(url, keyring, template_keys)


def _print(values: object) -> None:
    out.print_json(json.dumps(values))
