"""Approximate search, Milvus with rotated templates, the keyed rotation, and the synchronised that feeds them all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ppfr.serving.crypto.rotation import KeyedRotation
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.approximate import ApproximateIndex
from ppfr.serving.search.index import ExactIndex, Index
from ppfr.serving.search.synchronised import SynchronisedIndex
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

SIZE = 16


def vectors(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


# --- rotation -------------------------------------------------------------------------------------------------------
def test_a_rotation_keeps_cosines_and_can_be_undone() -> None:
    rotation = KeyedRotation(b"k" * 32, SIZE)
    templates = vectors(20, 0)
    rotated = rotation(templates)
    assert torch.allclose(rotated @ rotated.T, templates @ templates.T, atol=1e-6)
    assert torch.allclose(rotation.inverse(rotated), templates, atol=1e-6)
    assert torch.equal(KeyedRotation(b"k" * 32, SIZE)(templates), rotated)


def test_rotations_by_different_keys_have_nothing_in_common() -> None:
    size = 256
    templates = vectors(200, 0, size)
    first, second = (KeyedRotation(key * 32, size)(templates) for key in (b"a", b"b"))
    # 200 cosines of independent directions in 256 dimensions: their mean deviates by 0.0044
    for pair in ((first, templates), (first, second)):
        assert abs(float((pair[0] * pair[1]).sum(1).mean())) < 0.03
    with pytest.raises(GalleryError, match="expected at least 16"):
        KeyedRotation(b"short", SIZE)


# --- every index ----------------------------------------------------------------------------------------------------
@pytest.fixture(params=["exact", "approximate", "milvus"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    if request.param == "exact":
        yield ExactIndex(SIZE)
    elif request.param == "approximate":
        yield ApproximateIndex(SIZE)
    else:
        milvus = pytest.importorskip("ppfr.serving.search.milvus")
        opened = milvus.MilvusIndex(str(tmp_path / "milvus.db"), "faces", KeyedRotation(b"k" * 32, SIZE))
        yield opened
        opened.close()


def test_every_index_adds_replaces_removes_and_finds(index: Index) -> None:
    templates = vectors(40, 1)
    assert index.search(templates[:2], 3) == [[], []]
    index.add([str(row) for row in range(40)], templates)
    assert len(index) == 40
    found = index.search(templates, 1)
    assert [one[0].key for one in found] == [str(row) for row in range(40)]
    assert all(one[0].score == pytest.approx(1, abs=2e-3) for one in found)
    index.remove(["7", "not there"])
    index.add(["3"], -templates[3:4])
    assert len(index) == 39
    assert index.search(templates[7:8], 1)[0][0].key != "7"
    assert index.search(-templates[3:4], 1)[0][0].key == "3"
    scores = [match.score for match in index.search(templates[:1], 39)[0]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 39
    with pytest.raises(GalleryError, match=r"shape \(1, 15\)"):
        index.search(torch.ones(1, 15), 1)
    with pytest.raises(GalleryError, match="limit is 0"):
        index.search(templates[:1], 0)
    with pytest.raises(GalleryError, match="keys"):
        index.add(["a"], templates[:2])
    assert len(index) == 39


def test_building_keeps_adds_and_removes(index: Index, tmp_path: Path) -> None:
    gallery = Gallery(f"sqlite:///{tmp_path / 'g.db'}", Keyring.create(), "c", SIZE)
    faces = [gallery.faces.enrol("Ana", vectors(1, seed)[0]).id for seed in range(3)]
    # as a collection outside that missed some changes while no server ran
    index.add([faces[0], "gone"], vectors(2, 0))
    assert SynchronisedIndex(gallery, index).build() == 3
    assert index.keys() == set(faces) and len(index) == 3
    gallery.close()


def test_the_index_follows_the_gallery(index: Index, tmp_path: Path) -> None:
    gallery = Gallery(f"sqlite:///{tmp_path / 'g.db'}", Keyring.create(), "c", SIZE)
    first = gallery.faces.enrol("Ana", vectors(1, 0)[0])
    synchronised = SynchronisedIndex(gallery, index, interval=0.05)
    assert synchronised.build() == 1
    synchronised.start()
    second = gallery.faces.enrol("Bo", vectors(1, 1)[0])
    gallery.faces.delete(first.id)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and [m.key for m in index.search(vectors(1, 0), 5)[0]] != [second.id]:
        time.sleep(0.02)
    synchronised.stop()
    assert [match.key for match in index.search(vectors(1, 0), 5)[0]] == [second.id]
    gallery.faces.enrol("Cy", vectors(1, 2)[0])
    assert len(index) == 1 and synchronised.refresh() == 1 and len(index) == 2
    gallery.close()


# --- approximate ----------------------------------------------------------------------------------------------------
def recall(searched: Index, exact: Index, queries: torch.Tensor, limit: int = 10) -> float:
    found = [{match.key for match in some} for some in searched.search(queries, limit)]
    truth = [{match.key for match in some} for some in exact.search(queries, limit)]
    return sum(len(some & true) for some, true in zip(found, truth, strict=True)) / sum(map(len, truth))


def test_more_effort_finds_more() -> None:
    templates, queries = vectors(3000, 0, 64), vectors(50, 1, 64)
    exact, good, bad = ExactIndex(64), ApproximateIndex(64, effort=256), ApproximateIndex(64, effort=1)
    for searched in (exact, good, bad):
        searched.add([str(row) for row in range(3000)], templates)
    assert recall(bad, exact, queries) < 0.9 < recall(good, exact, queries)


def test_recall_is_measured_with_the_gallery_itself(tmp_path: Path) -> None:
    gallery = Gallery(f"sqlite:///{tmp_path / 'g.db'}", Keyring.create(), "c", SIZE)
    exact, none = ExactIndex(SIZE), ExactIndex(SIZE)
    assert SynchronisedIndex(gallery, exact).recall() == 1
    for seed in range(30):
        gallery.faces.enrol("Ana", vectors(1, seed)[0])
    SynchronisedIndex(gallery, exact).build()
    assert SynchronisedIndex(gallery, exact).recall() == 1 and SynchronisedIndex(gallery, none).recall() == 0
    # an index that lacks a third of the gallery misses about as much
    exact.remove(sorted(exact.keys())[::3])
    assert 0.4 < SynchronisedIndex(gallery, exact).recall() < 0.9
    gallery.close()


def test_waste_is_cleared_away() -> None:
    searched = ApproximateIndex(SIZE)
    searched.add([str(row) for row in range(100)], vectors(100, 0))
    searched.remove([str(row) for row in range(0, 100, 2)])
    assert len(searched) == 50 and searched._graph.ntotal < 65
    found = searched.search(vectors(100, 0)[1::2], 1)
    assert [one[0].key for one in found] == [str(row) for row in range(1, 100, 2)]


# --- Milvus ---------------------------------------------------------------------------------------------------------
def test_milvus_is_given_rotated_templates_only(tmp_path: Path) -> None:
    milvus = pytest.importorskip("ppfr.serving.search.milvus")
    rotation = KeyedRotation(b"k" * 32, SIZE)
    searched = milvus.MilvusIndex(str(tmp_path / "milvus.db"), "faces", rotation)
    template = vectors(1, 0)
    searched.add(["a"], template)
    (row,) = searched._client.query("faces", ids=["a"], output_fields=["vector"])
    held = torch.tensor(row["vector"])[None]
    assert torch.allclose(held, rotation(template), atol=1e-5)
    assert float((held * template).sum()) < 0.9
    searched.close()


def test_milvus_out_of_reach_is_told() -> None:
    milvus = pytest.importorskip("ppfr.serving.search.milvus")
    with pytest.raises(GalleryError, match="letters, digits and underscores"):
        milvus.MilvusIndex("x.db", "no-dash", KeyedRotation(b"k" * 32, SIZE))
