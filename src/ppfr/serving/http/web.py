"""The web page at `/`, a client that runs in the browser: its files and headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from ppfr.methods.common.files import SECRETS_FILE
from ppfr.serving.contract import CLIENT, CONTRACT_FILE, GRAPH_FILE, GRAPH_INFO_FILE, Contract, half_folder
from ppfr.serving.http.assets import has_runtime, runtime_folder
from ppfr.util.errors import CheckpointError, DataError

_FOLDER = Path(__file__).parent / "page"
_PUBLIC = (CONTRACT_FILE, GRAPH_INFO_FILE, GRAPH_FILE)
_POLICY = {
    "default-src": "'none'",
    # compiling WebAssembly, not eval
    "script-src": "'self' 'wasm-unsafe-eval'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    """The folders that the page is served from; `detector` is YuNet as ONNX, without which it takes aligned crops.

    `secrets` says where the browser gets the client's secrets: `none` if there are none, `served` from the client's
    folder to holders of an API key, or `asked` from the user as a file. `warning` is the contract's.
    """

    client: Path
    runtime: Path
    detector: Path | None
    secrets: str
    warning: str | None = None


def open_page(client: Path, contract: str, detector: Path | None = None, runtime: Path | None = None) -> Page:
    """A page for the `client/` folder of the deployment with this contract id.

    Raises CheckpointError when the folder is another deployment's or holds no graph, and DataError without
    onnxruntime-web or for a detector that does not exist.
    """
    folder = half_folder(client, CLIENT)
    found = Contract.load(folder)
    if found.id != contract:
        raise CheckpointError(f"{folder} is of contract {found.id}; this server's is {contract}. Give its own client/")
    if not (folder / GRAPH_FILE).is_file() or not (folder / GRAPH_INFO_FILE).is_file():
        raise CheckpointError(
            f"{folder} lacks {GRAPH_FILE}, so no browser can protect: repeat `ppfr export`, which gives the reason if "
            "this method has none"
        )
    if detector is not None and not detector.is_file():
        raise DataError(f"{detector}: no such file; expected YuNet as ONNX, which `ppfr web-assets` fetches")
    runtime = runtime or runtime_folder()
    if not has_runtime(runtime):
        raise DataError(f"{runtime} lacks onnxruntime-web, on which the page runs: fetch it with `ppfr web-assets`")
    needed = json.loads((folder / GRAPH_INFO_FILE).read_text())["secrets"]
    secrets = "none" if not needed else "served" if (folder / SECRETS_FILE).is_file() else "asked"
    return Page(folder, runtime, detector, secrets, found.warning)


def add_page(app: FastAPI, page: Page, with_key: Any) -> None:
    """Serve the page at / and its files below /page; `with_key` is the dependency that requires an API key."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/", _sends(_FOLDER / "index.html", "text/html"))
    for name in _PUBLIC:
        router.add_api_route(f"/page/client/{name}", _sends(page.client / name))
    if page.secrets == "served":
        secrets = _sends(page.client / SECRETS_FILE, "application/octet-stream", {"Cache-Control": "no-store"})
        router.add_api_route(f"/page/client/{SECRETS_FILE}", secrets, dependencies=[with_key])
    if page.detector is not None:
        router.add_api_route("/page/detector.onnx", _sends(page.detector))

    @router.get("/page/config.json")
    def config() -> Response:
        settings = {"detector": page.detector is not None, "secrets": page.secrets, "warning": page.warning}
        return JSONResponse(settings, headers=HEADERS)

    app.include_router(router)
    app.mount("/page/runtime", _Files(page.runtime))
    app.mount("/page", _Files(_FOLDER))


def _sends(path: Path, kind: str | None = None, headers: dict[str, str] | None = None) -> Callable[[], Response]:
    def send() -> Response:
        if not path.is_file():
            raise HTTPException(404, f"{path.name} is no longer there")
        return FileResponse(path, media_type=kind, headers=HEADERS | (headers or {}))

    return send


class _Files(StaticFiles):
    """Files of a folder, with the page's headers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        if path.endswith((".js", ".mjs")):
            # the system's table of types may differ, and browsers refuse modules of another type
            response.headers["Content-Type"] = "text/javascript; charset=utf-8"
        return response
