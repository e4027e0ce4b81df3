"""What the server hands out for the web page, to whom, and what it refuses; and how the page's runtime is fetched."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from ppfr.cli import application
from ppfr.data.detection.yunet import MODEL_SHA256, MODEL_URL
from ppfr.methods import create
from ppfr.serving.deployment.export import export_method
from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http import web
from ppfr.serving.http.app import create_app
from ppfr.serving.http.assets import RUNTIME_FILES, fetch_runtime, has_runtime, runtime_folder
from ppfr.serving.service import open_service
from ppfr.util.errors import CheckpointError, DataError
from ppfr.util.fetch import cached_path
from ppfr.util.keyring import Keyring
from support.deployments import SPEC, build_method

PAGE = Path(web.__file__).parent / "page"
KEYS: dict[Role, str] = {}


@pytest.fixture
def runtime_files(tmp_path: Path) -> Path:
    """Stands in for onnxruntime-web, beside a file that nobody may read."""
    folder = tmp_path / "around" / "runtime"
    folder.mkdir(parents=True)
    for name in RUNTIME_FILES:
        (folder / name).write_bytes(name.encode())
    (folder.parent / "private.txt").write_text("not for browsers")
    return folder


@contextmanager
def serving(
    deployment: Path, folder: Path, client: Path, runtime: Path, detector: Path | None = None
) -> Iterator[TestClient]:
    service = open_service(deployment, f"sqlite:///{folder}/gallery.db", Keyring.create(), threads=1)
    page = web.open_page(client, service.contract.id, detector, runtime)
    for role in Role:
        KEYS[role] = service.gallery.api_keys.create(role, role)[1]
    with TestClient(create_app(service, page=page)) as server:
        yield server


def without_secrets(deployment: Path, folder: Path) -> Path:
    shutil.copytree(deployment / "client", folder / "client", ignore=shutil.ignore_patterns("secrets*"))
    return folder / "client"


def test_every_file_of_the_page_comes_with_its_headers(deployment: Path, tmp_path: Path, runtime_files: Path) -> None:
    detector = tmp_path / "detector.onnx"
    detector.write_bytes(b"a network")
    with serving(deployment, tmp_path, deployment / "client", runtime_files, detector) as server:
        files = [f"/page/{path.name}" for path in PAGE.iterdir() if path.name != "index.html"]
        files += [f"/page/runtime/{name}" for name in RUNTIME_FILES]
        files += [f"/page/client/{name}" for name in ("contract.json", "protect.json", "protect.onnx")]
        for path in ["/", "/page/config.json", "/page/detector.onnx", *files]:
            answer = server.get(path)
            assert answer.status_code == 200 and answer.content, path
            for name, value in web.HEADERS.items():
                assert answer.headers[name] == value, path
            kind = answer.headers["content-type"]
            assert path.endswith((".js", ".mjs")) == kind.startswith("text/javascript"), path
            assert path.endswith(".wasm") == (kind == "application/wasm"), path
        assert server.get("/").headers["content-type"].startswith("text/html")
        assert server.get("/page/detector.onnx").content == b"a network"
        assert server.get("/page/config.json").json() == {"detector": True, "secrets": "served", "warning": None}


def test_the_policy_lets_nothing_out_and_nothing_in() -> None:
    rules = dict(rule.split(" ", 1) for rule in web.HEADERS["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert all(re.fullmatch(r"'none'|'self'( 'wasm-unsafe-eval')?", value) for value in rules.values())
    assert rules["connect-src"] == rules["style-src"] == "'self'"


def test_the_page_names_no_other_host() -> None:
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?|wss?):?//|[\"'(]//", text), path
        # the policy forbids them
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|\beval\(|innerHTML", text), path


def test_secrets_go_to_holders_of_a_key_alone(deployment: Path, tmp_path: Path, runtime_files: Path) -> None:
    path = "/page/client/secrets.safetensors"
    secrets = (deployment / "client" / "secrets.safetensors").read_bytes()
    with serving(deployment, tmp_path, deployment, runtime_files) as server:
        assert server.get(path).status_code == 401
        assert server.get(path, headers={"x-api-key": "wrong"}).status_code == 401
        for role in Role:
            answer = server.get(path, headers={"x-api-key": KEYS[role]})
            assert answer.status_code == 200 and answer.content == secrets
            assert answer.headers["cache-control"] == "no-store"
        public = [
            server.get(f"/page/client/{name}").content for name in ("contract.json", "protect.json", "protect.onnx")
        ]
    values = secrets[-64:]
    assert len(set(values)) > 8 and not any(values in file for file in public)


def test_secrets_that_the_server_does_not_hold_are_asked_for(
    deployment: Path, tmp_path: Path, runtime_files: Path
) -> None:
    client = without_secrets(deployment, tmp_path)
    with serving(deployment, tmp_path, client, runtime_files) as server:
        assert server.get("/page/config.json").json() == {"detector": False, "secrets": "asked", "warning": None}
        # what comes to lie there later is not handed out either
        shutil.copy(deployment / "client" / "secrets.safetensors", client)
        answer = server.get("/page/client/secrets.safetensors", headers={"x-api-key": KEYS[Role.ADMIN]})
        assert answer.status_code == 404


def test_a_method_without_secrets_needs_none(tmp_path: Path, runtime_files: Path) -> None:
    export_method(create("arcface-fd", SPEC), tmp_path / "deployment")
    with serving(tmp_path / "deployment", tmp_path, tmp_path / "deployment", runtime_files) as server:
        assert server.get("/page/config.json").json()["secrets"] == "none"


@pytest.mark.parametrize(
    "path",
    [
        "/page/../web.py",
        "/page/%2e%2e/web.py",
        "/page/..%2fweb.py",
        "/page/%2e%2e%2fweb.py",
        "/page//etc/passwd",
        "/page/%2fetc/passwd",
        "/page/runtime/../private.txt",
        "/page/runtime/%2e%2e/private.txt",
        "/page/runtime/..%2fprivate.txt",
        "/page/runtime/..%5cprivate.txt",
        "/page/runtime/x%00",
        "/page/runtime/",
        "/page/client/client.safetensors",
        "/page/client/%2e%2e/server/embed.onnx",
        "/page/client/..%2fserver%2fembed.onnx",
        "/page/client/secrets.safetensors",
        "/page/detector.onnx",
    ],
)
def test_nothing_else_is_handed_out(deployment: Path, tmp_path: Path, runtime_files: Path, path: str) -> None:
    client = without_secrets(deployment, tmp_path)
    with serving(deployment, tmp_path, client, runtime_files) as server:
        for key in ({}, {"x-api-key": KEYS[Role.ADMIN]}):
            answer = server.get(path, headers=key)
            assert answer.status_code in (400, 404, 405), answer.text
            assert set(answer.json()) == {"message", "code"}
            assert str(tmp_path) not in answer.text


def test_without_a_page_there_is_none(deployment: Path, tmp_path: Path) -> None:
    service = open_service(deployment, f"sqlite:///{tmp_path}/gallery.db", Keyring.create(), threads=1)
    with TestClient(create_app(service)) as server:
        assert server.get("/").status_code == server.get("/page/main.js").status_code == 404


def test_the_page_is_no_part_of_the_api(deployment: Path, tmp_path: Path, runtime_files: Path) -> None:
    with serving(deployment, tmp_path, deployment, runtime_files) as server:
        paths = server.get("/openapi.json").json()["paths"]
    assert "/healthz" in paths and not any(path == "/" or path.startswith("/page") for path in paths)


def test_a_page_of_another_deployment_is_refused(deployment: Path, tmp_path: Path, runtime_files: Path) -> None:
    export_method(build_method(seed=1), tmp_path / "other")
    service = open_service(deployment, f"sqlite:///{tmp_path}/gallery.db", Keyring.create(), threads=1)
    contract = service.contract.id
    service.close()
    with pytest.raises(CheckpointError, match=rf"is of contract [0-9a-f]{{32}}; this server's is {contract}\."):
        web.open_page(tmp_path / "other", contract, None, runtime_files)
    with pytest.raises(CheckpointError, match="give the client/ or server/ folder"):
        web.open_page(tmp_path, contract, None, runtime_files)


def test_what_the_page_lacks_is_named(deployment: Path, tmp_path: Path, runtime_files: Path) -> None:
    client = without_secrets(deployment, tmp_path)
    contract = web.Contract.load(client).id
    with pytest.raises(DataError, match=r"nowhere.onnx: no such file; expected YuNet .* `ppfr web-assets` fetches"):
        web.open_page(client, contract, tmp_path / "nowhere.onnx", runtime_files)
    (runtime_files / RUNTIME_FILES[1]).unlink()
    with pytest.raises(DataError, match=r"lacks onnxruntime-web.*fetch it with `ppfr web-assets`"):
        web.open_page(client, contract, None, runtime_files)
    (client / "protect.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"lacks protect\.onnx, so no browser can protect: repeat `ppfr export`"):
        web.open_page(client, contract, None, runtime_files)


def test_serve_says_what_the_page_lacks(deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPFR_CACHE", str(tmp_path / "cache"))
    Keyring.create().save(tmp_path / "key")
    gallery = ["--gallery", f"sqlite:///{tmp_path}/gallery.db", "--key-file", str(tmp_path / "key"), "--port", "0"]
    result = CliRunner().invoke(application(), ["serve", str(deployment), *gallery, "--page-client", str(deployment)])
    assert result.exit_code != 0
    assert "fetch it with `ppfr web-assets`" in f"{result.output} {result.exception}"


# --- onnxruntime-web ------------------------------------------------------------------------------------------------
def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


WHOLE = archive_of({f"package/dist/{name}": name.encode() for name in (*RUNTIME_FILES, "ort.js")})


@contextmanager
def offering(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A server that has an archive: its URL and SHA-256."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder.mkdir()
    (folder / "runtime.tgz").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Keep the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/runtime.tgz", hashlib.sha256(content).hexdigest()
        finally:
            server.shutdown()
            thread.join()


def test_the_runtime_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "runtime"
    with offering(WHOLE, tmp_path / "server", monkeypatch) as (url, sha256):
        assert fetch_runtime(folder, url, sha256) == folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            name: name.encode() for name in RUNTIME_FILES
        }
        # other users' servers read it
        assert folder.stat().st_mode & 0o777 == 0o755
        assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == ["runtime"]
    assert fetch_runtime(folder, url, sha256) == folder


def test_a_folder_that_lacks_a_file_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "runtime"
    with offering(WHOLE, tmp_path / "server", monkeypatch) as (url, sha256):
        fetch_runtime(folder, url, sha256)
        (folder / RUNTIME_FILES[0]).unlink()
        assert not has_runtime(folder) and has_runtime(fetch_runtime(folder, url, sha256))


def test_another_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "runtime"
    with (
        offering(WHOLE, tmp_path / "server", monkeypatch) as (url, _),
        pytest.raises(DataError, match="its SHA-256 is"),
    ):
        fetch_runtime(folder, url, "0" * 64)
    assert not folder.exists()


@pytest.mark.parametrize("content", [archive_of({"package/dist/ort.js": b""}), b"no archive", WHOLE[:-40]])
def test_an_archive_without_the_files_leaves_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "runtime"
    refused = pytest.raises(DataError, match="is no archive of onnxruntime-web")
    with offering(content, tmp_path / "server", monkeypatch) as (url, sha256), refused:
        fetch_runtime(folder, url, sha256)
    assert not folder.exists() and not list(folder.parent.glob(".runtime.*[!k]"))


def test_web_assets_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPFR_CACHE", str(tmp_path))
    runtime_folder().mkdir()
    for path in [*(runtime_folder() / name for name in RUNTIME_FILES), cached_path(MODEL_URL, MODEL_SHA256)]:
        path.write_bytes(b"fetched before")
    result = CliRunner().invoke(application(), ["web-assets"])
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(runtime_folder()), str(cached_path(MODEL_URL, MODEL_SHA256))]
