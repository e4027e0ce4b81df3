"""The gallery: nothing acknowledged is lost, nothing deleted stays, nothing opens elsewhere."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.gallery.gallery import Gallery
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import ENVIRONMENT, Keyring, Sealed

SIZE = 16


def template(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)), dim=0)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.create()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gallery.db"


@pytest.fixture
def gallery(file: Path, keyring: Keyring) -> Iterator[Gallery]:
    """A gallery in SQLite, for what looks into its files."""
    opened = Gallery(f"sqlite:///{file}", keyring, "contract-1", SIZE)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, file: Path) -> str:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{file}"
    database: Callable[[], str] = request.getfixturevalue("postgres")
    return database()


@pytest.fixture
def any_gallery(url: str, keyring: Keyring) -> Iterator[Gallery]:
    """A gallery in each kind of database."""
    opened = Gallery(url, keyring, "contract-1", SIZE)
    yield opened
    opened.close()


def indexed(gallery: Gallery) -> dict[str, torch.Tensor]:
    """What an index rebuilt from the gallery holds."""
    _, batches = gallery.changes.snapshot()
    return {face: row for faces, rows in batches for face, row in zip(faces, rows, strict=True)}


# --- subjects and faces ---------------------------------------------------------------------------------------------
def test_enrolled_faces_come_back(any_gallery: Gallery) -> None:
    faces = [any_gallery.faces.enrol(name, template(seed)) for seed, name in enumerate(["Ana", "Bo", "Ana"])]
    assert any_gallery.subjects.names() == ["Ana", "Bo"]
    assert any_gallery.faces.find() == faces
    assert any_gallery.faces.find("Ana") == [faces[0], faces[2]]
    assert any_gallery.faces.find(offset=1, limit=1) == [faces[1]]
    assert (any_gallery.faces.count(), any_gallery.faces.count("Ana"), any_gallery.faces.count("nobody")) == (3, 2, 0)
    assert any_gallery.faces.owners([faces[1].id, "gone"]) == {faces[1].id: "Bo"}
    found = any_gallery.faces.template(faces[0].id)
    assert found is not None and torch.allclose(found, template(0), atol=1e-3)
    assert set(indexed(any_gallery)) == {face.id for face in faces}


def test_a_renamed_subject_keeps_its_faces_and_joins_one_of_the_same_name(any_gallery: Gallery) -> None:
    first, second = any_gallery.faces.enrol("Ana", template(0)), any_gallery.faces.enrol("Bo", template(1))
    assert any_gallery.subjects.rename("Ana", "Anna") and any_gallery.subjects.names() == ["Anna", "Bo"]
    assert any_gallery.subjects.rename("Anna", "Bo")
    assert any_gallery.subjects.names() == ["Bo"]
    assert {face.id for face in any_gallery.faces.find("Bo")} == {first.id, second.id}
    assert any_gallery.subjects.rename("Bo", "Bo") and any_gallery.faces.count("Bo") == 2
    assert not any_gallery.subjects.rename("nobody", "X")


def test_deletion_is_for_good_and_leaves_an_audit_row(gallery: Gallery, file: Path) -> None:
    kept, gone = gallery.faces.enrol("Ana", template(0)), gallery.faces.enrol("Bo", template(1))
    with sqlite3.connect(file) as raw:
        (sealed,) = raw.execute("select template from faces where id = ?", (gone.id,)).fetchone()
    assert gallery.subjects.delete("Bo", actor="me") == 1
    assert gallery.subjects.delete("Bo") is None
    assert gallery.subjects.names() == ["Ana"] and gallery.faces.template(gone.id) is None
    left = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert sealed not in left and b"Bo" not in left
    newest = gallery.audit()[0]
    assert (newest.action, newest.actor, newest.faces) == ("delete subject", "me", 1)
    assert set(indexed(gallery)) == {kept.id}


def test_faces_are_deleted_one_by_one_or_all_of_a_subject(any_gallery: Gallery) -> None:
    faces = [any_gallery.faces.enrol("Ana", template(seed)) for seed in range(3)]
    assert any_gallery.faces.delete(faces[0].id) == faces[0]
    assert any_gallery.faces.delete(faces[0].id) is None
    assert any_gallery.faces.delete_of("Ana") == 2
    assert any_gallery.faces.delete_of("nobody") == 0
    assert any_gallery.subjects.names() == ["Ana"] and any_gallery.faces.count() == 0
    any_gallery.faces.enrol("Bo", template(4))
    assert any_gallery.subjects.delete_all() == 2
    assert any_gallery.subjects.names() == [] and indexed(any_gallery) == {}


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "a\nb", "\0"])
def test_names_that_cannot_be_are_refused(any_gallery: Gallery, name: str) -> None:
    with pytest.raises(GalleryError, match="expected 1 to 255 printable"):
        any_gallery.faces.enrol(name, template(0))
    assert any_gallery.subjects.names() == [] and any_gallery.faces.count() == 0


@pytest.mark.parametrize("name", ["'; drop table faces; --", "日本", "a" * 255, "../../etc/passwd", "%s{0}"])
def test_any_other_name_is_just_a_name(any_gallery: Gallery, name: str) -> None:
    face = any_gallery.faces.enrol(name, template(0))
    assert any_gallery.subjects.names() == [name] and any_gallery.faces.find(name) == [face]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(SIZE), torch.ones(SIZE + 1), torch.full((SIZE,), torch.nan), torch.ones(1, SIZE)]
)
def test_templates_that_cannot_be_are_refused(gallery: Gallery, wrong: torch.Tensor) -> None:
    with pytest.raises(GalleryError, match=r"expected \(16,\), finite, not zero"):
        gallery.faces.enrol("Ana", wrong)
    assert gallery.subjects.names() == []


# --- repeated requests ----------------------------------------------------------------------------------------------
def test_a_repeated_request_enrols_once(any_gallery: Gallery) -> None:
    face = any_gallery.faces.enrol("Ana", template(0), request="r1", content=b"message")
    # the same message may be embedded a little differently when it comes in another batch
    assert any_gallery.faces.enrol("Ana", template(0) + 1e-4, request="r1", content=b"message") == face
    assert any_gallery.faces.count() == 1
    with pytest.raises(GalleryError, match="request key 'r1' was used for another face"):
        any_gallery.faces.enrol("Ana", template(1), request="r1", content=b"other")
    with pytest.raises(GalleryError, match="used for another face"):
        any_gallery.faces.enrol("Bo", template(0), request="r1", content=b"message")
    assert any_gallery.subjects.names() == ["Ana"]


def test_the_same_request_at_once_enrols_once(any_gallery: Gallery) -> None:
    with ThreadPoolExecutor(8) as pool:
        faces = list(
            pool.map(lambda _: any_gallery.faces.enrol("Ana", template(0), request="r", content=b"m"), range(16))
        )
    assert len(set(faces)) == 1 and any_gallery.faces.count() == 1


def test_many_writers_lose_nothing(any_gallery: Gallery) -> None:
    with ThreadPoolExecutor(8) as pool:
        faces = list(pool.map(lambda seed: any_gallery.faces.enrol(f"s{seed % 5}", template(seed)), range(60)))
    assert {face.id for face in any_gallery.faces.find()} == {face.id for face in faces}
    assert len({change.face for change in any_gallery.changes.after(0)}) == 60


# --- changes --------------------------------------------------------------------------------------------------------
def test_changes_lead_from_a_snapshot_to_now(any_gallery: Gallery) -> None:
    first, second = any_gallery.faces.enrol("Ana", template(0)), any_gallery.faces.enrol("Ana", template(1))
    last, batches = any_gallery.changes.snapshot()
    held = {face: row for faces, rows in batches for face, row in zip(faces, rows, strict=True)}
    third = any_gallery.faces.enrol("Bo", template(2))
    any_gallery.faces.delete(first.id)
    changes = any_gallery.changes.after(last)
    assert [change.number for change in changes] == sorted(change.number for change in changes)
    for change in changes:
        if change.template is None:
            held.pop(change.face, None)
        else:
            held[change.face] = change.template
    assert set(held) == {second.id, third.id} == set(indexed(any_gallery))
    assert any_gallery.changes.after(changes[-1].number) == []


# --- encryption -----------------------------------------------------------------------------------------------------
def test_no_template_lies_open_in_the_files(gallery: Gallery, file: Path) -> None:
    for seed in range(20):
        gallery.faces.enrol("Ana", template(seed))
    content = b"".join(path.read_bytes() for path in file.parent.iterdir())
    for seed in range(20):
        for kind in (np.float16, np.float32, np.float64):
            values = template(seed).numpy().astype(kind)
            # any run of four values would give a template away
            assert not any(values[start : start + 4].tobytes() in content for start in range(SIZE - 3))


def test_rows_cannot_be_exchanged(gallery: Gallery, file: Path) -> None:
    first, second = gallery.faces.enrol("Ana", template(0)), gallery.faces.enrol("Bo", template(1))
    with sqlite3.connect(file) as raw:
        (data,) = raw.execute("select template from faces where id = ?", (first.id,)).fetchone()
        raw.execute("update faces set template = ? where id = ?", (data, second.id))
    with pytest.raises(GalleryError, match="does not open"):
        gallery.faces.template(second.id)
    assert gallery.faces.template(first.id) is not None


def test_rotation_changes_every_key_and_goes_on_after_a_stop(any_gallery: Gallery, url: str, keyring: Keyring) -> None:
    faces = [any_gallery.faces.enrol("Ana", template(seed)) for seed in range(5)]
    before = indexed(any_gallery)
    ring = keyring.with_new_key()
    steps: list[tuple[int, int]] = []
    assert any_gallery.keys.rotate(ring, lambda *step: steps.append(step)) == 5 and any_gallery.keys.rotate(ring) == 0
    assert steps[-1] == (5, 5) and any_gallery.keys.encryption_keys() == {ring.current: 5}
    any_gallery.close()
    reopened = Gallery(url, ring.without_old_keys(), "contract-1", SIZE)
    after = indexed(reopened)
    assert all(torch.equal(after[face.id], before[face.id]) for face in faces)
    stale = Gallery(url, keyring, "contract-1", SIZE)
    with pytest.raises(GalleryError, match="is not in the ring"):
        stale.faces.template(faces[0].id)
    with pytest.raises(GalleryError, match="give this server the new key file"):
        stale.faces.enrol("Ana", template(9))
    assert reopened.faces.count() == 5
    reopened.close()
    stale.close()


def test_without_its_keys_a_gallery_shows_all_but_templates(any_gallery: Gallery, url: str) -> None:
    face = any_gallery.faces.enrol("Ana", template(0))
    bare = Gallery.existing(url)
    assert (bare.contract, bare.size, bare.subjects.names()) == ("contract-1", SIZE, ["Ana"])
    for ask in (lambda: bare.faces.template(face.id), lambda: bare.faces.enrol("Bo", template(1))):
        with pytest.raises(GalleryError, match="opened without its keys"):
            ask()
    assert any_gallery.damage() == [] and any_gallery.faces.count() == 1
    bare.close()


def test_servers_may_start_at_once(url: str, keyring: Keyring) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Gallery(url, keyring, "contract-1", SIZE), range(4)))
    for number, gallery in enumerate(opened):
        gallery.faces.enrol("Ana", template(number))
    assert {gallery.faces.count() for gallery in opened} == {4}
    for gallery in opened:
        gallery.close()


def test_one_name_enrolled_by_several_servers_at_once_is_one_subject(url: str, keyring: Keyring) -> None:
    servers = [Gallery(url, keyring, "contract-1", SIZE) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: servers[number % 3].faces.enrol(f"s{number // 3}", template(number)), range(30)))
    assert (
        servers[0].subjects.names() == sorted(f"s{number}" for number in range(10)) and servers[0].faces.count() == 30
    )
    numbers = [change.number for change in servers[0].changes.after(0)]
    assert numbers == sorted(set(numbers)) and len(numbers) == 30
    for gallery in servers:
        gallery.close()


def test_a_gallery_belongs_to_its_deployment(any_gallery: Gallery, url: str, keyring: Keyring) -> None:
    for contract, size in (("contract-2", SIZE), ("contract-1", SIZE + 1)):
        with pytest.raises(GalleryError, match="belongs to another deployment"):
            Gallery(url, keyring, contract, size)


def test_an_unknown_database_is_refused(keyring: Keyring) -> None:
    for url in ("nonsense", "strange://host/name"):
        with pytest.raises(GalleryError, match="expected for example sqlite:///"):
            Gallery(url, keyring, "c", SIZE)


# --- keyring --------------------------------------------------------------------------------------------------------
def test_a_key_file_is_for_its_owner(tmp_path: Path, keyring: Keyring) -> None:
    path = tmp_path / "keys.json"
    ring = keyring.with_new_key()
    ring.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = Keyring.load(path)
    assert loaded.ids == ring.ids and loaded.current != keyring.current
    sealed = keyring.seal(b"text", "here")
    assert loaded.open(sealed, "here") == b"text"
    path.chmod(0o644)
    with pytest.raises(GalleryError, match="may be read by others; chmod 600"):
        Keyring.load(path)


def test_a_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(GalleryError, match=ENVIRONMENT):
        Keyring.load()
    monkeypatch.setenv(ENVIRONMENT, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    ring = Keyring.load()
    assert Keyring.load().open(ring.seal(b"x", "c"), "c") == b"x"
    for wrong in ("short", "AAAA", "ü"):
        monkeypatch.setenv(ENVIRONMENT, wrong)
        with pytest.raises(GalleryError, match=r"base64|expected 32"):
            Keyring.load()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"keys": {"a": 1}, "current": "a"}', '{"keys": {}, "current": "a"}']
)
def test_broken_key_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(GalleryError):
        Keyring.load(path)
    with pytest.raises(GalleryError, match="does not exist"):
        Keyring.load(tmp_path / "none")


def test_damage_and_foreign_contexts_do_not_open(keyring: Keyring) -> None:
    sealed = keyring.seal(b"text", "row 1")
    assert keyring.seal(b"text", "row 1") != sealed
    flipped = bytes([sealed.data[0] ^ 1]) + sealed.data[1:]
    for wrong, context in (
        (sealed, "row 2"),
        (Sealed(sealed.key_id, flipped), "row 1"),
        (Sealed(sealed.key_id, b""), "row 1"),
    ):
        with pytest.raises(GalleryError, match="does not open"):
            keyring.open(wrong, context)


# --- API keys -------------------------------------------------------------------------------------------------------
def test_api_keys_are_kept_as_digests(gallery: Gallery, file: Path) -> None:
    key, secret = gallery.api_keys.create("door 1", "recognise")
    assert key.role is Role.RECOGNISE and gallery.api_keys.all() == [key]
    assert gallery.api_keys.authenticate(secret) == key
    assert gallery.api_keys.authenticate(secret + "x") is None and gallery.api_keys.authenticate("") is None
    content = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert secret.encode() not in content
    assert gallery.api_keys.revoke(key.id) and not gallery.api_keys.revoke(key.id)
    assert gallery.api_keys.authenticate(secret) is None
    with pytest.raises(GalleryError, match="role 'boss'; expected enrol, recognise, admin"):
        gallery.api_keys.create("x", "boss")


# --- kill -----------------------------------------------------------------------------------------------------------
ENROL = """
import sys, torch
from ppfr.serving.gallery.gallery import Gallery
from ppfr.util.keyring import Keyring
gallery = Gallery(sys.argv[1], Keyring.load(sys.argv[2]), "contract-1", 16)
for number in range(int(sys.argv[3]), 100000):
    seed = torch.Generator().manual_seed(number)
    gallery.faces.enrol(f"s{number % 7}", torch.randn(16, generator=seed), request=str(number), content=b"m")
    print(number, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, file: Path, keyring: Keyring) -> None:
    keyring.save(tmp_path / "keys.json")
    url, acknowledged = f"sqlite:///{file}", -1
    for _ in range(3):
        arguments = [url, str(tmp_path / "keys.json"), str(max(0, acknowledged))]
        child = subprocess.Popen([sys.executable, "-c", ENROL, *arguments], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            acknowledged = max(acknowledged, int(line))
            if int(line) >= int(arguments[2]) + 10:
                break
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait()
    gallery = Gallery(url, keyring, "contract-1", SIZE)
    # one more may have been committed just before it could be acknowledged
    assert acknowledged + 1 <= gallery.faces.count() <= acknowledged + 2
    assert set(indexed(gallery)) == {face.id for face in gallery.faces.find()}
    gallery.close()
