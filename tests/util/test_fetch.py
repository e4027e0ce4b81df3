from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ppfr.util.errors import DataError
from ppfr.util.fetch import cache_folder, cached, fetch

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any name, as the test wants it, and remembers what was asked for."""

    ranges = True
    breaks_after: int | None = None
    content = CONTENT
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/tiny%20model.onnx"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        rest = self.server.content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks_after])

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path):
    path = cached(server.url, SHA256, tmp_path / "cache")
    assert path.name == f"{SHA256[:12]}-tiny model.onnx"
    assert path.read_bytes() == CONTENT
    assert cached(server.url, SHA256, tmp_path / "cache") == path
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_goes_on(server: Server, tmp_path: Path, ranges: bool):
    server.breaks_after, server.ranges = 100_000, ranges
    with pytest.raises(DataError, match=r"tiny%20model\.onnx: cannot be fetched .*call again to continue"):
        fetch(server.url, SHA256, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert (tmp_path / ".model.part").read_bytes() == CONTENT[:100_000]
    server.breaks_after = None
    fetch(server.url, SHA256, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]
    assert not (tmp_path / ".model.part").exists()


def test_killed_between_the_last_byte_and_the_name(server: Server, tmp_path: Path):
    (tmp_path / ".model.part").write_bytes(CONTENT)
    fetch(server.url, SHA256, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_another_content_is_not_kept(server: Server, tmp_path: Path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=rf"its SHA-256 is [0-9a-f]{{64}}; expected {SHA256}\. The file has changed"):
        fetch(server.url, SHA256, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    server.content = CONTENT
    fetch(server.url, SHA256, tmp_path / "model")


def test_a_beginning_of_another_file_is_found_out(server: Server, tmp_path: Path):
    (tmp_path / ".model.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="SHA-256"):
        fetch(server.url, SHA256, tmp_path / "model")
    fetch(server.url, SHA256, tmp_path / "model")


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_told(server: Server, tmp_path: Path, status: int):
    server.status = status
    with pytest.raises(DataError, match=r"cannot be fetched \(.*\); call again .* give its path"):
        fetch(server.url, SHA256, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x: cannot be fetched \(.*refused"):
        fetch("http://127.0.0.1:9/x", SHA256, tmp_path / "x")


def test_two_at_a_time_fetch_once(server: Server, tmp_path: Path):
    threads = [threading.Thread(target=fetch, args=(server.url, SHA256, tmp_path / "model")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "model").read_bytes() == CONTENT
    assert server.asked == [None]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("PPFR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "ppfr"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ppfr"
    monkeypatch.setenv("PPFR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
