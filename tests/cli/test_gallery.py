"""`ppfr gallery ...` as it is typed, on the gallery of a tiny deployment."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.gallery.gallery import Gallery
from ppfr.util.keyring import ENVIRONMENT, Keyring
from support.commands import ppfr_command

SIZE = 16
Run = Callable[..., tuple[int, Any]]


def template(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)), dim=0)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "gallery.key"
    Keyring.create().save(path)
    return path


@pytest.fixture
def url(tmp_path: Path, key_file: Path) -> str:
    """A gallery of three faces of two subjects."""
    address = f"sqlite:///{tmp_path}/gallery.db"
    gallery = Gallery(address, Keyring.load(key_file), "contract", SIZE)
    for seed, name in enumerate(["Ada", "Ada", "Chen"]):
        gallery.faces.enrol(name, template(seed))
    gallery.close()
    return address


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> Run:
    """Runs `ppfr gallery ARGUMENTS`; returns the exit status, and the JSON or the error that it prints."""
    monkeypatch.setenv("PPFR_GALLERY", url)
    monkeypatch.delenv(ENVIRONMENT, raising=False)

    def command(*arguments: object) -> tuple[int, Any]:
        status = ppfr_command("gallery", *arguments)
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out.startswith("{") else " ".join(printed.err.split())

    return command


def test_api_keys_are_added_listed_and_revoked(run: Run, url: str, key_file: Path) -> None:
    status, added = run("keys", "add", "door 1", "--role", "recognise")
    assert status == 0 and added["role"] == "recognise"
    gallery = Gallery(url, Keyring.load(key_file), "contract", SIZE)
    found = gallery.api_keys.authenticate(added["x-api-key"])
    assert found is not None and found.role is Role.RECOGNISE and found.name == "door 1"
    assert run("keys", "list") == (0, {"keys": [{"id": added["id"], "name": "door 1", "role": "recognise"}]})
    assert run("keys", "revoke", added["id"]) == (0, {"revoked": added["id"]})
    # a gallery that is open knows of it
    assert gallery.api_keys.authenticate(added["x-api-key"]) is None
    gallery.close()
    status, told = run("keys", "revoke", added["id"])
    assert status == 1 and "there is no API key with the id" in told
    status, told = run("keys", "add", "x", "--role", "boss")
    assert status == 1 and "expected enrol, recognise, admin" in told


def test_subjects_are_counted(run: Run) -> None:
    assert run("subjects") == (0, {"subjects": 2, "faces": 3})
    assert run("subjects", "--names") == (0, {"subjects": 2, "faces": 3, "names": ["Ada", "Chen"]})


def test_without_a_gallery_there_is_nothing_to_do(run: Run, tmp_path: Path) -> None:
    absent = tmp_path / "other.db"
    status, told = run("subjects", "--gallery", f"sqlite:///{absent}")
    assert status == 1 and "holds no gallery" in told and not absent.exists()
    status, told = run("subjects", "--gallery", "postgresql+psycopg://me:hidden@127.0.0.1:1/x")
    assert status == 1 and "cannot be used" in told and "hidden" not in told


def test_a_new_key_file_is_made_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    status, made = run("new-key", path)
    assert status == 0 and path.stat().st_mode & 0o777 == 0o600 and Keyring.load(path).current == made["key"]
    before = path.read_bytes()
    status, told = run("new-key", path)
    assert status == 1 and "exists already" in told and path.read_bytes() == before


def test_rotation_gives_a_new_key_while_a_server_runs(run: Run, url: str, key_file: Path) -> None:
    old = Keyring.load(key_file)
    server = Gallery(url, old, "contract", SIZE)
    status, told = run("rotate", "--key-file", key_file)
    ring = Keyring.load(key_file)
    assert (status, told) == (0, {"key": ring.current, "older keys": [old.current], "templates": 3})
    # the server reads the file again when it meets the new key, and encrypts with it from then on
    new = server.faces.enrol("Bo", template(5))
    assert server.keys.encryption_keys() == {ring.current: 4}
    assert server.faces.template(new.id) is not None
    assert run("rotate", "--key-file", key_file, "--forget")[0] == 0
    assert len(Keyring.load(key_file).ids) == 1
    found = server.faces.template(new.id)
    assert found is not None and torch.allclose(found, template(5), atol=1e-3)
    server.close()


def test_nothing_is_enrolled_under_a_key_that_went(run: Run, url: str, key_file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy.key"
    Keyring.load(key_file).save(elsewhere)
    server = Gallery(url, Keyring.load(elsewhere), "contract", SIZE)
    assert run("rotate", "--key-file", key_file)[0] == 0
    with pytest.raises(ValueError, match="give this server the new key file"):
        server.faces.enrol("Bo", template(5))
    assert server.faces.count() == 3
    Keyring.load(key_file).save(elsewhere)
    server.faces.enrol("Bo", template(5))
    server.close()


def test_a_stopped_rotation_goes_on(run: Run, url: str, key_file: Path) -> None:
    # stopped after the file was written and before a template was
    ring = Keyring.load(key_file).with_new_key()
    ring.save(key_file)
    status, told = run("rotate", "--key-file", key_file)
    assert status == 0 and told["key"] == ring.current and told["templates"] == 3


def test_keys_may_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    old, new = json.loads(key_file.read_text())["keys"].popitem()[1], "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert run("check")[0] == 1
    monkeypatch.setenv(ENVIRONMENT, old)
    assert run("check")[0] == 0
    status, told = run("rotate")
    assert status == 1 and "expected NEW,OLD" in told
    monkeypatch.setenv(ENVIRONMENT, f"{new},{old}")
    assert run("rotate")[1]["templates"] == 3
    monkeypatch.setenv(ENVIRONMENT, new)
    assert run("check")[1]["sound"]


@pytest.mark.parametrize("index", ["exact", "approximate", "milvus"])
def test_a_sound_gallery_is_called_so(run: Run, index: str, key_file: Path, url: str, tmp_path: Path) -> None:
    if index == "milvus":
        pytest.importorskip("milvus_lite")
        index = f"milvus:{tmp_path / 'milvus.db'}"
        status, told = run("check", "--key-file", key_file, "--index", index)
        # the collection is as servers left it, and none filled it
        assert status == 1 and len([one for one in told["problems"] if "lacks face" in one]) == 3
        return
    status, told = run("check", "--key-file", key_file, "--index", index)
    assert status == 0 and told["sound"] and told["faces"] == 3 and told["problems"] == []
    assert list(told["faces by key"].values()) == [3]


def test_damage_is_found(run: Run, url: str, key_file: Path, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "gallery.db") as raw:
        first, second = (row[0] for row in raw.execute("select id from faces limit 2"))
        raw.execute(
            "update faces set template = (select template from faces where id = ?) where id = ?", (first, second)
        )
    raw.close()
    status, told = run("check", "--key-file", key_file)
    assert status == 1 and not told["sound"] and "does not open" in told["problems"][0]
    other = tmp_path / "other.key"
    Keyring.create().save(other)
    status, told = run("check", "--key-file", other)
    assert status == 1 and "which is not in the ring" in told["problems"][0]
    status, told = run("rotate", "--key-file", other)
    assert status == 1 and "which are not in the ring" in told
    status, told = run("check", "--key-file", key_file, "--index", "fuzzy")
    assert status == 1 and "expected exact, approximate or milvus:URI" in told
