"""Revocable templates: comparable under one key, unlinkable across keys, reissued while servers run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.evaluation.metrics.unlinkability import chance_d_sys, d_sys
from ppfr.serving.crypto.rotation import KeyedRotation
from ppfr.serving.crypto.templates import ENVIRONMENT, TemplateKind, TemplateProtection
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.service import Service, open_service
from ppfr.transforms.template import TemplateKey, protect_template
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring
from support.commands import ppfr_command

SIZE = 16
# cosine above which two vectors are one; 16 numbers of strangers do not come near it
SAME = 0.99


def faces(people: int, photos: int, size: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings as a good recogniser makes them: photos of one person have a cosine of 0.6 on average."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(people, size, generator=generator)).repeat_interleave(photos, 0)
    others = F.normalize(torch.randn(len(centres), size, generator=generator))
    return F.normalize(0.6**0.5 * centres + 0.4**0.5 * others), np.repeat(np.arange(people), photos)


def two_keys(kind: str, size: int) -> tuple[TemplateProtection, str, str]:
    ring = Keyring.create().with_new_key()
    old, new = ring.ids
    return TemplateProtection(kind, size, ring), old, new


def unlinkability(left: torch.Tensor, right: torch.Tensor, owners: np.ndarray) -> tuple[float, float]:
    """D_sys of all pairs of a template here and one of another photo there, and what chance alone gives."""
    scores = (F.normalize(left) @ F.normalize(right).T).double().numpy()
    apart = ~np.eye(len(owners), dtype=bool)
    first, second = (grid[apart] for grid in np.meshgrid(owners, owners, indexing="ij"))
    values = scores[apart]
    return d_sys(values[first == second], values[first != second]), chance_d_sys(values, (first, second), seed=0)


# --- the transforms -------------------------------------------------------------------------------------------------
@given(size=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_rotated_templates_keep_inner_products_under_one_key(size: int, seed: int) -> None:
    made, key, _ = two_keys("rotated", size)
    embeddings = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
    stored = made.protect(embeddings, key)
    units = F.normalize(embeddings)
    assert torch.allclose(F.normalize(stored) @ F.normalize(stored).T, units @ units.T, atol=1e-5)


def test_carried_over_templates_are_those_of_the_other_key() -> None:
    made, old, new = two_keys("rotated", 512)
    embeddings = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    carried = made.carry(made.protect(embeddings, old), old, new)
    assert torch.allclose(carried, made.protect(embeddings, new), atol=1e-5)
    assert not torch.allclose(carried, made.protect(embeddings, old), atol=0.1)


def test_slerp_templates_are_slerpfaces_of_rotated_ones_and_lose_dimensions() -> None:
    made, old, new = two_keys("slerp", 512)
    embeddings = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    stored = made.protect(embeddings, old)
    assert torch.equal((stored == 0).sum(1), torch.full((6,), 128))
    assert torch.allclose(stored.norm(dim=1), torch.ones(6), atol=1e-5)
    assert torch.equal(stored == 0, (stored == 0)[:1].expand(6, -1))
    # two keys drop other dimensions
    assert int(((made.protect(embeddings, new) == 0) ^ (stored == 0))[0].sum()) > 64
    with pytest.raises(GalleryError, match="slerp templates cannot be carried over"):
        made.carry(stored, old, new)


@pytest.mark.parametrize("kind", ["rotated", "slerp"])
def test_templates_recognise_within_a_key_and_are_unlinkable_across_keys(kind: str) -> None:
    made, old, new = two_keys(kind, 512)
    embeddings, owners = faces(60, 4, 512)
    here, there = made.protect(embeddings, old), made.protect(embeddings, new)
    within, _ = unlinkability(here, here, owners)
    across, chance = unlinkability(here, there, owners)
    # 360 pairs of photos of one person: chance itself is far from 0
    assert within > 0.9
    assert across < chance + 0.1 and across < 0.3


def test_slerpface_alone_would_be_linkable() -> None:
    """Why slerp templates are rotated first."""
    embeddings, owners = faces(60, 4, 512)
    here, there = (
        protect_template(embeddings, TemplateKey.draw(512, torch.Generator().manual_seed(seed)), 0.7) for seed in (1, 2)
    )
    across, chance = unlinkability(here, there, owners)
    assert across > chance + 0.3


def test_kinds_and_keys_are_checked() -> None:
    with pytest.raises(GalleryError, match="templates 'round'; expected plain, rotated, slerp"):
        TemplateProtection("round", SIZE)
    with pytest.raises(GalleryError, match="templates are plain and have no key"):
        TemplateProtection("plain", SIZE, Keyring.create())
    with pytest.raises(GalleryError, match=f"templates are rotated: give the file with their key.*{ENVIRONMENT}"):
        TemplateProtection("rotated", SIZE).protect(torch.ones(1, SIZE), "x")
    with pytest.raises(GalleryError, match="under key 'x', which is not in the ring"):
        TemplateProtection("rotated", SIZE, Keyring.create()).protect(torch.ones(1, SIZE), "x")


# --- galleries ------------------------------------------------------------------------------------------------------
@pytest.fixture
def keyring() -> Keyring:
    return Keyring.create()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gallery.db"
    database: Callable[[], str] = request.getfixturevalue("postgres")
    return database()


def held(gallery: Gallery) -> dict[str, torch.Tensor]:
    _, batches = gallery.changes.snapshot()
    return {face: row for ids, rows in batches for face, row in zip(ids, rows, strict=True)}


def test_what_is_stored_is_the_protected_template(url: str, keyring: Keyring) -> None:
    keys = Keyring.create()
    gallery = Gallery(url, keyring, "contract", SIZE, templates="rotated", template_keys=keys)
    embedding = faces(1, 1, SIZE)[0][0]
    face = gallery.faces.enrol("Ada", embedding)
    stored = gallery.faces.template(face.id)
    assert stored is not None and not torch.allclose(stored, embedding, atol=0.1)
    assert torch.allclose(stored, gallery.protect(embedding[None])[0], atol=1e-3)
    assert torch.allclose(
        stored, TemplateProtection("rotated", SIZE, keys).protect(embedding[None], keys.current)[0], atol=1e-3
    )
    assert gallery.keys.template_keys() == {keys.current: 1}
    gallery.close()


def test_the_kind_is_chosen_once(url: str, keyring: Keyring) -> None:
    keys = Keyring.create()
    Gallery(url, keyring, "contract", SIZE, templates="slerp", template_keys=keys).close()
    opened = Gallery(url, keyring, "contract", SIZE, template_keys=keys)
    assert opened.templates is TemplateKind.SLERP
    opened.close()
    for kind in ("plain", "rotated"):
        with pytest.raises(GalleryError, match=f"templates are slerp, not {kind}, as was chosen when it was made"):
            Gallery(url, keyring, "contract", SIZE, templates=kind, template_keys=keys)
    with pytest.raises(GalleryError, match="one key both encrypts templates and makes them"):
        Gallery(url, keyring, "contract", SIZE, template_keys=keyring)
    bare = Gallery.existing(url, keyring)
    assert bare.subjects.names() == []
    with pytest.raises(GalleryError, match="templates are slerp: give the file with their key"):
        bare.faces.enrol("Ada", torch.ones(SIZE))
    bare.close()


def test_plain_galleries_have_no_template_key(url: str, keyring: Keyring) -> None:
    gallery = Gallery(url, keyring, "contract", SIZE)
    assert (gallery.templates, gallery.template_key) == (TemplateKind.PLAIN, "")
    with pytest.raises(GalleryError, match="plain templates have no key: they cannot be reissued"):
        gallery.keys.reissue(Keyring.create())
    gallery.close()
    with pytest.raises(GalleryError, match="templates are plain and have no key"):
        Gallery(url, keyring, "contract", SIZE, template_keys=Keyring.create())


def test_a_row_does_not_open_under_another_template_key(tmp_path: Path, keyring: Keyring) -> None:
    keys = Keyring.create().with_new_key()
    url = f"sqlite:///{tmp_path}/gallery.db"
    gallery = Gallery(url, keyring, "contract", SIZE, templates="rotated", template_keys=keys)
    face = gallery.faces.enrol("Ada", torch.ones(SIZE))
    with sqlite3.connect(tmp_path / "gallery.db") as raw:
        raw.execute("update faces set template_key = ?", (keys.ids[0],))
    raw.close()
    with pytest.raises(GalleryError, match="does not open"):
        gallery.faces.template(face.id)
    gallery.close()


def test_rotated_templates_are_reissued_without_enrolling_again(url: str, keyring: Keyring, tmp_path: Path) -> None:
    keys = Keyring.create()
    keys.save(tmp_path / "templates.key")
    embeddings, owners = faces(5, 2, SIZE)
    running = Gallery(
        url, keyring, "contract", SIZE, templates="rotated", template_keys=Keyring.load(tmp_path / "templates.key")
    )
    for row, owner in zip(embeddings, owners, strict=True):
        running.faces.enrol(f"person {owner}", row)
    before = held(running)
    ring = keys.with_new_key()
    ring.save(tmp_path / "templates.key")
    operator = Gallery.existing(url, keyring, ring)
    steps: list[tuple[int, int]] = []
    assert operator.keys.reissue(ring, lambda *step: steps.append(step)) == 10 and operator.keys.reissue(ring) == 0
    assert steps[-1] == (10, 10)
    # what runs goes on under the key that it began with, and stores under the new one
    late = running.faces.enrol("late", embeddings[0])
    assert running.keys.template_keys() == {ring.current: 11} and running.template_key == keys.current
    after = held(running)
    assert all(torch.allclose(after[face], before[face], atol=2e-3) for face in before)
    probe = running.protect(embeddings[:1])[0]
    assert float(after[late.id] @ probe) > 0.999
    # what starts anew needs the new key alone, and finds everybody
    fresh = Gallery(url, keyring, "contract", SIZE, template_keys=ring.without_old_keys())
    stored, names = held(fresh), {face.id: face.subject for face in fresh.faces.find()}
    assert not any(torch.allclose(stored[face], before[face], atol=0.1) for face in before)
    for row, owner in zip(embeddings, owners, strict=True):
        (asked,) = fresh.protect(row[None])
        best = max((face for face in stored if names[face] != "late"), key=lambda face: float(stored[face] @ asked))
        assert names[best] == f"person {owner}" and float(stored[best] @ asked) > 0.999
    for gallery in (running, operator, fresh):
        gallery.close()


def test_a_stopped_reissue_is_whole_and_goes_on(url: str, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppfr.serving.gallery.renewal._CHUNK", 2)
    keys = Keyring.create()
    gallery = Gallery(url, keyring, "contract", SIZE, templates="rotated", template_keys=keys)
    embeddings, _ = faces(5, 1, SIZE)
    ids = [gallery.faces.enrol("Ada", row).id for row in embeddings]
    ring = keys.with_new_key()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.keys.reissue(ring, stop)
    assert gallery.keys.template_keys() == {keys.current: 3, ring.current: 2}
    # a server that begins in between compares all under one key
    fresh = Gallery(url, keyring, "contract", SIZE, template_keys=ring)
    expected = fresh.protect(embeddings)
    assert all(torch.allclose(held(fresh)[face], expected[row], atol=2e-3) for row, face in enumerate(ids))
    assert fresh.keys.reissue(ring) == 3 and fresh.keys.template_keys() == {ring.current: 5}
    fresh.close()
    gallery.close()


def test_encrypting_anew_leaves_templates_and_their_key_alone(url: str, keyring: Keyring) -> None:
    keys = Keyring.create()
    gallery = Gallery(url, keyring, "contract", SIZE, templates="rotated", template_keys=keys)
    face = gallery.faces.enrol("Ada", torch.ones(SIZE))
    before = gallery.faces.template(face.id)
    gallery.close()
    # who encrypts anew needs no template key
    ring = keyring.with_new_key()
    operator = Gallery.existing(url, ring)
    assert operator.keys.rotate(ring) == 1
    operator.close()
    after = Gallery(url, ring.without_old_keys(), "contract", SIZE, template_keys=keys)
    found = after.faces.template(face.id)
    assert before is not None and found is not None and torch.equal(before, found)
    assert after.keys.template_keys() == {keys.current: 1}
    after.close()


def test_slerp_templates_are_dropped_and_their_subjects_stay(url: str, keyring: Keyring) -> None:
    keys = Keyring.create()
    ring = keys.with_new_key()
    # a server that knows the new key from its file
    gallery = Gallery(url, keyring, "contract", SIZE, templates="slerp", template_keys=keys)
    embeddings, _ = faces(3, 1, SIZE)
    first = [gallery.faces.enrol("Ada", row) for row in embeddings]
    last, _ = gallery.changes.snapshot()
    assert gallery.keys.reissue(ring) == 0
    assert gallery.faces.count() == 0 and gallery.subjects.names() == ["Ada"]
    assert {change.face for change in gallery.changes.after(last) if change.template is None} == {
        face.id for face in first
    }
    again = gallery.faces.enrol("Ada", embeddings[0])
    stored = gallery.faces.template(again.id)
    assert gallery.keys.template_keys() == {ring.current: 1} and stored is not None
    assert float(stored @ gallery.protect(embeddings[:1])[0]) > 0.999
    gallery.close()


# --- servers --------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["rotated", "slerp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(deployment: Path, tmp_path: Path, keyring: Keyring, kind: str) -> Iterator[Service]:
    """A running server; its keys lie in files, as its operator's do."""
    keyring.save(tmp_path / "gallery.key")
    Keyring.create().save(tmp_path / "templates.key")
    service = open_service(
        deployment,
        f"sqlite:///{tmp_path}/gallery.db",
        keyring,
        threads=1,
        templates=kind,
        template_keys=Keyring.load(tmp_path / "templates.key"),
    )
    yield service
    service.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = ppfr_command("gallery", *arguments)
    printed = capsys.readouterr()
    return status, printed.out if printed.out.startswith("{") else " ".join(printed.err.split())


def test_a_server_goes_on_while_its_gallery_is_reissued(
    server: Service,
    kind: str,
    send: Callable[..., bytes],
    deployment: Path,
    tmp_path: Path,
    keyring: Keyring,
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = [send(number) for number in range(3)]
    for number, message in enumerate(messages):
        server.enrol(message, f"person {number}")
    assert [one.subject for one in server.recognise(messages[1])] == ["person 1"]
    url = f"sqlite:///{tmp_path}/gallery.db"
    common = ["--gallery", url, "--key-file", tmp_path / "gallery.key"]
    ours = [*common, "--template-key-file", tmp_path / "templates.key"]
    assert run(capsys, "check", *ours)[0] == 0
    if kind == "slerp":
        status, told = run(capsys, "reissue", *ours)
        assert status == 1 and "give --drop-templates" in told and server.gallery.faces.count() == 3
        ours.append("--drop-templates")
    status, told = run(capsys, "reissue", *ours, "--forget")
    answer = json.loads(told)
    kept, removed = (3, 0) if kind == "rotated" else (0, 3)
    assert status == 0 and (answer["templates"], answer["templates removed"]) == (kept, removed)
    assert answer["older keys"] == [] and len(server.gallery.subjects.names()) == 3
    server.index.refresh()
    assert len(server.index) == kept
    if kind == "slerp":
        for number, message in enumerate(messages):
            server.enrol(message, f"person {number}")
    server.enrol(send(7), "late")
    newcomer = open_service(deployment, url, keyring, threads=1, template_keys=Keyring.load(tmp_path / "templates.key"))
    for service in (server, newcomer):
        for number, message in enumerate(messages):
            (best,) = service.recognise(message)
            assert best.subject == f"person {number}" and best.similarity > 0.999
            told_again = service.verify_subject(message, f"person {number}")
            assert told_again is not None and told_again.similarity > 0.999
    newcomer.close()
    assert run(capsys, "check", *ours[:6])[0] == 0
    Keyring.create().save(tmp_path / "other.key")
    status, told = run(capsys, "check", *common, "--template-key-file", tmp_path / "other.key")
    assert status == 1 and "which is not in the ring" in told


def test_a_template_key_may_come_from_the_environment(
    tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/gallery.db"
    keyring.save(tmp_path / "gallery.key")
    old, new = ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    monkeypatch.setenv(ENVIRONMENT, old)
    ring = Keyring.load(None, ENVIRONMENT)
    gallery = Gallery(url, keyring, "contract", SIZE, templates="rotated", template_keys=ring)
    gallery.faces.enrol("Ada", torch.ones(SIZE))
    gallery.close()
    common = ["--gallery", url, "--key-file", tmp_path / "gallery.key"]
    status, told = run(capsys, "reissue", *common)
    assert status == 1 and f"{ENVIRONMENT} holds only one key; expected NEW,OLD" in told
    monkeypatch.setenv(ENVIRONMENT, f"{new},{old}")
    assert json.loads(run(capsys, "reissue", *common)[1])["templates"] == 1
    monkeypatch.setenv(ENVIRONMENT, new)
    assert run(capsys, "check", *common)[0] == 0


# --- Milvus ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def milvus(tmp_path: Path) -> str:
    pytest.importorskip("milvus_lite")
    return f"milvus:{tmp_path / 'milvus.db'}"


def in_milvus(service: Service) -> tuple[str, dict[str, torch.Tensor]]:
    """The collection of a server, and the vectors in it by face."""
    index: Any = service.index.index
    rows = index._client.query(index._name, filter="", output_fields=["id", "vector"], limit=100)
    return index._name, {row["id"]: torch.tensor(row["vector"]) for row in rows}


def cosines(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[float]:
    assert left.keys() == right.keys()
    return [float(F.cosine_similarity(left[face], right[face], dim=0)) for face in left]


def test_milvus_holds_neither_embeddings_nor_stored_templates_and_follows_a_reissue(
    kind: str,
    milvus: str,
    send: Callable[..., bytes],
    deployment: Path,
    tmp_path: Path,
    keyring: Keyring,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keyring.save(tmp_path / "gallery.key")
    Keyring.create().save(tmp_path / "templates.key")
    url = f"sqlite:///{tmp_path}/gallery.db"

    def start() -> Service:
        keys = Keyring.load(tmp_path / "templates.key")
        return open_service(deployment, url, keyring, index=milvus, threads=1, templates=kind, template_keys=keys)

    def recognises(service: Service, names: Iterable[str]) -> None:
        for name in names:
            (best,) = service.recognise(messages[name])
            assert best.subject == name and best.similarity > 0.999

    messages = {f"person {number}": send(number) for number in range(4)}
    server = start()
    ids = {name: server.enrol(message, name).id for name, message in messages.items()}
    recognises(server, messages)
    collection, vectors = in_milvus(server)
    embeddings = {ids[name]: server._embed(message, images=1)[0] for name, message in messages.items()}
    stored = held(server.gallery)
    assert max(cosines(vectors, embeddings)) < SAME and max(cosines(vectors, stored)) < SAME
    rotation = KeyedRotation(keyring.derive("milvus rotation"), len(next(iter(stored.values()))))
    assert min(cosines(vectors, {face: rotation(row[None])[0] for face, row in stored.items()})) > 0.9999

    server.gallery.subjects.delete("person 3")
    server.index.refresh()
    others = [name for name in messages if name != "person 3"]
    assert {one.subject for one in server.recognise(messages["person 3"], 10)} == set(others)
    assert in_milvus(server)[1].keys() == {ids[name] for name in others}

    ours = ["--gallery", url, "--key-file", tmp_path / "gallery.key", "--template-key-file", tmp_path / "templates.key"]
    drop = ["--drop-templates"] if kind == "slerp" else []
    assert run(capsys, "reissue", *ours, *drop, "--forget")[0] == 0
    newcomer = start()
    if kind == "slerp":
        assert len(newcomer.index) == 0 and newcomer.recognise(messages["person 0"]) == []
        for name in others:
            newcomer.enrol(messages[name], name)
        server.index.refresh()
    # the one that was running goes on under the key that it began with
    for service in (newcomer, server):
        recognises(service, others)
    renamed, anew = in_milvus(newcomer)
    owners = newcomer.gallery.faces.owners(list(anew))
    assert renamed != collection == in_milvus(server)[0]
    assert sorted(owners.values()) == others
    old = {face: vectors[ids[name]] for face, name in owners.items()}
    assert max(cosines(anew, old)) < SAME
    for service in (newcomer, server):
        service.close()
    status, told = run(capsys, "check", *ours, "--index", milvus)
    assert status == 0 and json.loads(told)["faces"] == 3
