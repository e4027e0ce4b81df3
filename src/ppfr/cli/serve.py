"""`ppfr serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ppfr.cli.app import app, out
from ppfr.errors import GalleryError


@app.command()
def serve(
    deployment: Annotated[Path, typer.Argument(help="Folder that `ppfr export` wrote, or its server/.")],
    gallery: Annotated[str, typer.Option(help="Database of templates, as SQLAlchemy names it.")] = (
        "sqlite:///gallery.db"
    ),
    key_file: Annotated[
        Path | None,
        typer.Option(help="Keys that templates are encrypted with, mode 0600; by default PPFR_GALLERY_KEY is read."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; put a TLS proxy before any but this one.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at.", min=0, max=65535)] = 8000,
    init: Annotated[
        bool, typer.Option("--init", help="First make the key file, if it is absent, and print a new admin API key.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Requests a second for each API key.", min=0.01)] = 50.0,
) -> None:
    """Answer enrolments and queries that come as payloads; photos never reach this program.

    Begin with `ppfr serve DIR --gallery sqlite:///gallery.db --key-file gallery.key --init`, and keep the API key that
    it prints. Ctrl-C or SIGTERM ends it after the requests under way.
    """
    import uvicorn

    from ppfr.serving.gallery import Role
    from ppfr.serving.keyring import Keyring
    from ppfr.serving.server import ServerLimits, create_app
    from ppfr.serving.start import open_service

    if init and key_file is not None and not key_file.exists():
        Keyring.create().save(key_file)
        out.print(f"{key_file}: a new key; without it the gallery's templates are lost", soft_wrap=True)
    service = open_service(deployment, gallery, Keyring.load(key_file))
    if init:
        _, secret = service.gallery.create_api_key("first admin", Role.ADMIN)
        out.print(f"x-api-key (admin, shown once): {secret}", soft_wrap=True)
    elif not service.gallery.api_keys():
        service.close()
        raise GalleryError(f"gallery {gallery!r} has no API key, so nobody could ask; begin with --init")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out.print(f"contract {service.contract.id}; {len(service)} templates; http://{host}:{port}", soft_wrap=True)
    application = create_app(service, ServerLimits(rate=rate, burst=max(1, round(2 * rate))))
    uvicorn.run(application, host=host, port=port, access_log=False, log_level="warning")
