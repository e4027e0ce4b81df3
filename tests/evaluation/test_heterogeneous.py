from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.data.faceset import FaceSet
from ppfr.data.protocols.fold_tests import FoldTest, ProtocolTest
from ppfr.data.protocols.heterogeneous import PROTOCOLS, Heterogeneous
from ppfr.evaluation import heterogeneous as module
from ppfr.evaluation.evaluate import embed_faces
from ppfr.evaluation.heterogeneous import FoldFigures, HeterogeneousFigures, evaluate_folds, match
from ppfr.methods import create
from ppfr.util.errors import DataError

Array = npt.NDArray[Any]


def cloud(seed: int, people: int = 7, photos: int = 1, probes: int = 30, noise: float = 2.0) -> tuple[Array, ...]:
    """Probes, whose they are, gallery, whose it is: everybody has `photos`, in no order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 8))
    known = rng.permutation(np.repeat(rng.permutation(people) + 100, photos))
    wanted = rng.integers(people, size=probes) + 100

    def draw(labels: Array) -> Array:
        return centres[labels - 100] + noise * rng.normal(size=(len(labels), 8))

    return draw(wanted), wanted, draw(known), known


def obvious(probes: Array, wanted: Array, gallery: Array, known: Array, fars: tuple[float, ...]) -> dict[str, float]:
    """The definitions with loops: one score a probe and person, every threshold tried."""
    hits = 0
    scores: list[tuple[float, bool]] = []
    for probe, own in zip(probes, wanted, strict=True):
        best: dict[int, float] = {}
        for photo, person in zip(gallery, known, strict=True):
            cosine = float(probe @ photo / np.linalg.norm(probe) / np.linalg.norm(photo))
            best[int(person)] = max(best.get(int(person), -2.0), cosine)
        hits += max(best, key=lambda person: best[person]) == own
        scores += [(score, person == own) for person, score in best.items()]
    right = [score for score, same in scores if same]
    wrong = [score for score, same in scores if not same]
    points = [(0.0, 0.0)]
    for threshold in sorted({score for score, _ in scores}, reverse=True):
        far = sum(score >= threshold for score in wrong) / len(wrong)
        points.append((far, sum(score >= threshold for score in right) / len(right)))
    figures = {"Rank-1": hits / len(probes)}
    for far in fars:
        figures[f"VR@FAR={100 * far:g}%"] = max(rate for accepted, rate in points if accepted <= far)
    beaten = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    figures["AUC"] = beaten / len(right) / len(wrong)
    for (far, rate), (next_far, next_rate) in pairwise(points):
        if next_far + next_rate >= 1:
            share = (1 - far - rate) / (next_far + next_rate - far - rate)
            figures["EER"] = far + share * (next_far - far)
            break
    return figures


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), photos=st.integers(1, 3), noise=st.floats(0.3, 4), tile=st.integers(1, 40))
def test_fast_matches_slow(seed: int, photos: int, noise: float, tile: int) -> None:
    data = cloud(seed, photos=photos, noise=noise)
    fars = (0.2, 0.05, 0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)
        figures = match(*data, fars=fars)
    assert figures.rates() == pytest.approx(obvious(*data, fars), abs=1e-12)
    assert (figures.probes, figures.people, figures.photos) == (30, 7, 7 * photos)
    assert (figures.genuine, figures.impostor) == (30, 30 * 6)
    assert figures.unresolved == (0.001,)


def test_golden(golden: Callable[[str], Any]) -> None:
    recorded = golden("hfr_metrics.npz")
    figures = match(
        recorded["probe"], recorded["probe_id"], recorded["gallery"], recorded["gallery_id"], fars=recorded["far"]
    )
    assert figures.rank1 == pytest.approx(float(recorded["rank1"][0]), abs=2e-3)
    assert list(figures.vr.values()) == pytest.approx(recorded["vr_at_far"].tolist(), abs=2e-3)
    assert figures.auc == pytest.approx(float(recorded["auc"][0]), abs=1e-4)
    assert figures.eer == pytest.approx(float(recorded["eer"][0]), abs=1e-4)


def test_of_several_photos_the_best_speaks_for_its_person() -> None:
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    figures = match(np.array([[0.0, 1.0]]), ["ann"], gallery, ["ann", "ann", "bob"])
    assert figures.rank1 == 1 and figures.auc == 1
    assert (figures.genuine, figures.impostor, figures.people, figures.photos) == (1, 1, 2, 3)
    # the bad photo of ann on its own loses
    assert match(np.array([[0.0, 1.0]]), ["ann"], gallery[[0, 2]], ["ann", "bob"]).rank1 == 0


def test_a_photo_more_of_the_same_changes_nothing() -> None:
    probes, wanted, gallery, known = cloud(3)
    twice = match(probes, wanted, np.concatenate([gallery, 2 * gallery]), np.concatenate([known, known]))
    assert twice.rates() == pytest.approx(match(probes, wanted, gallery, known).rates())


def test_embeddings_that_say_nothing_give_chance() -> None:
    figures = match(np.ones((10, 4)), np.arange(10), np.ones((10, 4)), np.arange(10))
    assert figures.rank1 == pytest.approx(0.1) and figures.auc == 0.5 and figures.eer == 0.5
    assert set(figures.vr.values()) == {0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_people": [1, 2]}, "1 probe people, among them .*3.*, are not in it"),
        ({"gallery_people": [3, 3]}, "holds 1 people: too few"),
        ({"probe_people": [3, 3]}, r"probes \(1, 2\) with \(2,\) labels"),
        ({"gallery": np.ones((2, 3))}, r"gallery \(2, 3\) with \(2,\)"),
        ({"gallery": np.zeros((2, 2))}, "'gallery' row 0 is zero"),
        ({"probes": np.full((1, 2), np.nan)}, "'probes' has 1 rows with NaN"),
        ({"fars": (1e-2, 0)}, "FAR targets are"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"probes": np.ones((1, 2)), "probe_people": [3], "gallery": np.eye(2), "gallery_people": [3, 4], **change}
    with pytest.raises(DataError, match=message):
        match(**given)


def figures_of(fold: int, rank1: float) -> FoldFigures:
    return FoldFigures(
        fold=fold, probes=10, people=5, photos=5, unmatched=0, genuine=10, impostor=40, rank1=rank1,
        vr={0.01: rank1 / 2, 0.001: 0.0}, unresolved=(0.01, 0.001), auc=0.9, eer=0.1,
    )  # fmt: skip


def test_mean_and_deviation_over_folds() -> None:
    result = HeterogeneousFigures(
        "LAMP-HQ", False, [figures_of(fold, rank) for fold, rank in ((1, 0.8), (2, 0.9), (3, 1))]
    )
    assert result.mean() == pytest.approx({"Rank-1": 0.9, "VR@FAR=1%": 0.45, "VR@FAR=0.1%": 0, "AUC": 0.9, "EER": 0.1})
    deviation = result.deviation()
    assert deviation is not None and deviation["Rank-1"] == pytest.approx(0.1) and deviation["EER"] == pytest.approx(0)
    described = result.to_dict()
    assert described["folds"][0]["vr"] == {"0.01": 0.4, "0.001": 0.0} and described["simulated"] is False
    assert HeterogeneousFigures("Tufts", True, [figures_of(1, 0.8)]).deviation() is None


@pytest.fixture(name="test_set")
def small_test() -> ProtocolTest:
    rng = np.random.default_rng(0)
    people = [f"p{person}" for person in range(4) for _ in range(3)]
    pictures = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    faces = FaceSet("faces", people, lambda rows: pictures[rows], names=[str(row) for row in range(12)], size=32)
    source = Heterogeneous(PROTOCOLS["lamp-hq"], Path("x"), Path("x"), (1, 2), None, [], None)
    folds = [
        FoldTest(1, np.array([0, 3, 6]), np.array([7, 1, 2, 4])),
        FoldTest(2, np.array([9, 3]), np.array([10, 4])),
    ]
    return ProtocolTest(source, faces, folds)


def test_each_image_is_embedded_once_and_each_fold_compares_its_own(
    test_set: ProtocolTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = create("arcface", "mobilefacenet", embedding_size=8, width=0.125)
    asked: list[Array] = []

    def counting(model: Any, faces: Any, rows: Array, **options: Any) -> Array:
        asked.append(rows)
        rng = np.random.default_rng(5)
        return rng.normal(size=(12, 6))[rows].astype(np.float32)

    monkeypatch.setattr(module, "embed_faces", counting)
    figures = evaluate_folds(method, test_set)
    assert [rows.tolist() for rows in asked] == [[0, 1, 2, 3, 4, 6, 7, 9, 10]]
    embeddings = np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32)
    labels = test_set.faces.labels
    for fold, found in zip(test_set.folds, figures, strict=True):
        wanted = match(
            embeddings[fold.probes], labels[fold.probes], embeddings[fold.gallery], labels[fold.gallery],
            fold=fold.number,
        )  # fmt: skip
        assert found == wanted


def test_embeddings_go_through_the_payload(test_set: ProtocolTest) -> None:
    faces = FaceSet(
        "faces",
        [test_set.faces.identities[label] for label in test_set.faces.labels],
        lambda rows: test_set.faces.images(rows).repeat(4, axis=1).repeat(4, axis=2)[:, :112, :112],
        names=test_set.faces.names,
    )
    test = ProtocolTest(test_set.source, faces, test_set.folds)
    method = create("partialface", "mobilefacenet", embedding_size=16, width=0.125)
    found = evaluate_folds(method, test, test.folds[1:], flip=False, seed=3)
    used = np.array([3, 4, 9, 10])
    embeddings = embed_faces(method, faces, used, flip=False, seed=3)
    wanted = match(embeddings[[3, 1]], [3, 1], embeddings[[2, 0]], [3, 1], fold=2)
    assert found == [wanted]
