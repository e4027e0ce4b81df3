"""`ppfr serve`."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppfr.cli.app import app, out
from ppfr.cli.export import warn_of
from ppfr.cli.gallery import (
    DATABASE,
    GalleryOption,
    IndexOption,
    KeyFileOption,
    TemplateKeyFileOption,
    template_keys,
)
from ppfr.util.errors import GalleryError, ServiceError

if TYPE_CHECKING:
    from ppfr.serving.http.web import Page


@app.command()
def serve(
    deployment: Annotated[Path, typer.Argument(help="Folder that `ppfr export` wrote, or its server/.")],
    gallery: GalleryOption = DATABASE,
    key_file: KeyFileOption = None,
    templates: Annotated[
        str | None,
        typer.Option(
            help="Kind of template in a new gallery: plain (embeddings), rotated (under a keyed rotation; exact, "
            "and reissued under a new key without enrolling again) or slerp (rotated, then SlerpFace; loses dimensions "
            "for good). By default plain, or what the gallery was made with, which stays."
        ),
    ] = None,
    template_key_file: TemplateKeyFileOption = None,
    index: IndexOption = "exact",
    precision: Annotated[
        str,
        typer.Option(
            help="Which graph of the server to run: float32, or float16 or int8 where `ppfr export --precision` wrote "
            "it and measured its cost."
        ),
    ] = "float32",
    host: Annotated[str, typer.Option(help="Address to listen at; put a TLS proxy before any but this one.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at.", min=0, max=65535)] = 8000,
    init: Annotated[
        bool,
        typer.Option(
            "--init",
            help="First make the key files, if they are absent, and an admin API key, if there is no key, and print "
            "it.",
        ),
    ] = False,
    page_client: Annotated[
        Path | None,
        typer.Option(
            help="Serve the web page at /, with the graph of this client/ folder. If its secrets lie there too, every "
            "holder of an API key gets them, and this machine knows them; if not, users bring the file."
        ),
    ] = None,
    page_detector: Annotated[
        Path | None,
        typer.Option(help="YuNet's ONNX file for the page; by default the one that `ppfr web-assets` fetched."),
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second for each API key.", min=0.01)] = 50.0,
) -> None:
    """Run a server that enrols and recognises payloads; it never receives photos.

    Start with `ppfr serve DIR --gallery sqlite:///gallery.db --key-file gallery.key --init`, and keep the API key that
    it prints. Ctrl-C or SIGTERM stops it after the current requests.
    """
    import uvicorn

    from ppfr.serving.gallery.api_keys import Role
    from ppfr.serving.gallery.database import hide_password
    from ppfr.serving.http.app import ServerLimits, create_app
    from ppfr.serving.service import open_service
    from ppfr.util.keyring import Keyring

    _refuse_taken_port(host, port)
    for file in (key_file, template_key_file):
        if init and file is not None and not file.exists():
            Keyring.create().save(file)
            out.print(f"{file}: a new key; if it is lost, the gallery's templates are lost", soft_wrap=True)
    service = open_service(
        deployment,
        gallery,
        Keyring.load(key_file),
        index=index,
        precision=precision,
        templates=templates,
        template_keys=template_keys(template_key_file),
    )
    page = None if page_client is None else _page(page_client, page_detector, service.contract.id)
    if init and not service.gallery.api_keys.all():
        _, secret = service.gallery.api_keys.create("first admin", Role.ADMIN)
        out.print(f"x-api-key (admin, shown once): {secret}", soft_wrap=True)
    elif not service.gallery.api_keys.all():
        service.close()
        raise GalleryError(
            f"gallery {hide_password(gallery)!r} has no API key, so that no client could use it; begin with --init, or "
            "`ppfr gallery keys add`"
        )
    if index == "approximate":
        out.print(f"approximate search finds {service.index.recall():.2%} of the 10 nearest templates", soft_wrap=True)
    warn_of(service.contract)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out.print(
        f"contract {service.contract.id}; {len(service.index)} templates, {service.gallery.templates}; http://{host}:{port}",
        soft_wrap=True,
    )
    application = create_app(service, ServerLimits(rate=rate, burst=max(1, round(2 * rate))), page)
    uvicorn.run(application, host=host, port=port, access_log=False, log_level="warning")


def _refuse_taken_port(host: str, port: int) -> None:
    # uvicorn finds out only after an admin key was made and the address was announced
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ServiceError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from error


def _page(client: Path, detector: Path | None, contract: str) -> Page:
    from ppfr.data.detection.yunet import MODEL_SHA256, MODEL_URL
    from ppfr.serving.http.web import open_page
    from ppfr.util.fetch import cached_path

    fetched = cached_path(MODEL_URL, MODEL_SHA256)
    page = open_page(client, contract, detector or (fetched if fetched.is_file() else None))
    if page.detector is None:
        out.print("the page takes aligned crops only: `ppfr web-assets` fetches a detector")
    if page.secrets == "served":
        out.print("the page sends the client's secrets to every holder of an API key")
    return page
