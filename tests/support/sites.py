"""A server with its page, on a port of its own, that keeps every request body it gets."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http.app import ServerLimits, create_app
from ppfr.serving.http.web import open_page
from ppfr.serving.service import open_service
from ppfr.util.keyring import Keyring


class Asked(NamedTuple):
    """A request as it came; `head` is its path, query and headers."""

    method: str
    path: str
    head: bytes
    body: bytes


@dataclass
class Site:
    """Where it answers, its admin API key, and what it was asked."""

    url: str
    key: str
    requests: list[Asked] = field(default_factory=list)


@contextmanager
def serving(
    deployment: Path, gallery: Path, client: Path, runtime: Path, detector: Path | None = None
) -> Iterator[Site]:
    service = open_service(deployment, f"sqlite:///{gallery}", Keyring.create(), threads=1)
    page = open_page(client, service.contract.id, detector, runtime)
    application = create_app(service, ServerLimits(rate=1e6, burst=10**6), page)
    site = Site("", service.gallery.api_keys.create("tests", Role.ADMIN)[1])

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        body = bytearray()

        async def heard() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await application(scope, heard, send)
        head = b"\n".join([scope["raw_path"], scope["query_string"], *itertools.chain(*scope["headers"])])
        site.requests.append(Asked(scope["method"], scope["path"], head, bytes(body)))

    server = uvicorn.Server(uvicorn.Config(recorded, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        site.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        yield site
    finally:
        server.should_exit = True
        thread.join()
