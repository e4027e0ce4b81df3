"""`ppfr serve` as it is typed, up to the moment when it would listen."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ppfr.serving.gallery.gallery import Gallery
from ppfr.util.keyring import ENVIRONMENT
from support.commands import ppfr_command

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `ppfr serve DEPLOYMENT ...`; returns the exit status and all that it prints."""
    monkeypatch.setattr("uvicorn.run", lambda application, **_: application.state.service.close())
    monkeypatch.setenv("PPFR_GALLERY", f"sqlite:///{tmp_path}/gallery.db")
    monkeypatch.delenv(ENVIRONMENT, raising=False)

    def command(*arguments: object) -> tuple[int, str]:
        status = ppfr_command("serve", deployment, "--port", 0, *arguments)
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return command


def test_the_first_start_makes_keys_and_later_ones_do_not(run: Run, tmp_path: Path) -> None:
    key_file = tmp_path / "gallery.key"
    status, told = run("--key-file", key_file, "--init")
    assert status == 0 and "a new key" in told and "x-api-key (admin, shown once)" in told
    assert key_file.stat().st_mode & 0o777 == 0o600
    content = key_file.read_bytes()
    status, told = run("--key-file", key_file, "--init")
    assert status == 0 and "x-api-key" not in told and key_file.read_bytes() == content
    gallery = Gallery.existing(f"sqlite:///{tmp_path}/gallery.db")
    (key,) = gallery.api_keys.all()
    gallery.api_keys.revoke(key.id)
    gallery.close()
    status, told = run("--key-file", key_file)
    assert status == 1 and "has no API key" in told


def test_indexes_are_chosen_by_name(run: Run, tmp_path: Path) -> None:
    key_file = tmp_path / "gallery.key"
    assert run("--key-file", key_file, "--init", "--index", "exact")[0] == 0
    status, told = run("--key-file", key_file, "--index", "approximate")
    assert status == 0 and "approximate search finds 100.00% of the 10 nearest templates" in told
    status, told = run("--key-file", key_file, "--index", "fuzzy")
    assert status == 1 and "index 'fuzzy'; expected exact, approximate or milvus:URI" in told


def test_milvus_is_an_index(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    file = tmp_path / "milvus.db"
    status, told = run("--key-file", tmp_path / "gallery.key", "--init", "--index", f"milvus:{file}")
    assert status == 0 and "0 templates" in told and file.exists()


def test_a_port_in_use_is_named_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, printed = run("--key-file", tmp_path / "k.key", "--init", "--port", port)
    assert status == 1
    assert f"ServiceError: cannot listen at 127.0.0.1:{port}: " in printed
    assert not (tmp_path / "k.key").exists()
