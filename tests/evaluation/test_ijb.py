"""IJB: golden parity with TFace's script, a slow obvious implementation, 1:N on cases done by hand, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.evaluation import ijb
from ppfr.evaluation.ijb import (
    TemplateFeatures,
    pair_scores,
    search_templates,
    template_features,
    template_rates,
    verify_templates,
)
from ppfr.util.errors import DataError


@pytest.mark.parametrize(("mode", "halves"), [("first_half", "first"), ("flip_sum", "sum")])
def test_golden(golden: Callable[[str], Any], mode: str, halves: Any) -> None:
    known = golden("ijb.npz")
    templates = template_features(known["features"], known["templates"], known["medias"], halves=halves)
    assert np.array_equal(templates.ids, known["unique_templates"])
    rows = templates.features[known[f"{mode}/template_rows"]]
    np.testing.assert_allclose(rows, known[f"{mode}/template_feats"], rtol=0, atol=1e-7)
    scores = pair_scores(templates, known["p1"], known["p2"])
    np.testing.assert_allclose(scores, known[f"{mode}/score"], rtol=0, atol=1e-7)
    rates = template_rates(scores, known["label"], fprs=known["fpr_targets"])
    fpr, tpr, threshold = known[f"{mode}/tpr_at_fpr"].T
    np.testing.assert_allclose(list(rates.tpr.values()), tpr, rtol=0, atol=1e-9)
    # the list holds some pairs twice, whose equal scores are points of their own in scikit-learn
    np.testing.assert_allclose(list(rates.fpr.values()), fpr, rtol=0, atol=1e-3)
    np.testing.assert_allclose(list(rates.threshold.values()), threshold, rtol=0, atol=1e-4)


def slow_template(features: np.ndarray, medias: np.ndarray, keep_norms: bool, weights: np.ndarray) -> np.ndarray:
    unit = [row * w if keep_norms else row / np.linalg.norm(row) * w for row, w in zip(features, weights, strict=True)]
    means = [np.mean([row for row, m in zip(unit, medias, strict=True) if m == medium], axis=0) for medium in {*medias}]
    total = np.sum(means, axis=0)
    return total / np.linalg.norm(total)


@given(
    count=st.integers(1, 60),
    templates=st.integers(1, 9),
    offset=st.sampled_from([0, 1, 1000, 10**9]),
    keep_norms=st.booleans(),
    weighted=st.booleans(),
    batch=st.sampled_from([1, 7, 4096]),
    block=st.sampled_from([1, 3, 256]),
    seed=st.integers(0, 999),
)
def test_against_loops(
    count: int, templates: int, offset: int, keep_norms: bool, weighted: bool, batch: int, block: int, seed: int
) -> None:
    """Any order of images, gaps in the numbers, large numbers, templates cut into batches and blocks."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5)).astype(np.float32)
    where = offset + 3 * rng.integers(templates, size=count)
    medias = rng.integers(4, size=count)
    weights = rng.uniform(0.5, 1, count) if weighted else np.ones(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ijb, "_IMAGES", batch)
        patch.setattr(ijb, "_CHUNK", block)
        found = template_features(features, where, medias, keep_norms=keep_norms, weights=weights if weighted else None)
        slow = {
            number: slow_template(
                features[where == number], medias[where == number], keep_norms, weights[where == number]
            )
            for number in np.unique(where).tolist()
        }
        np.testing.assert_allclose(found.features, list(slow.values()), atol=1e-6)
        assert found.ids.tolist() == list(slow)
        first, second = (rng.choice(found.ids, size=30) for _ in range(2))
        scores = pair_scores(found, first, second)
    expected = [slow[a] @ slow[b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_galleries_against_probes_need_no_triangle() -> None:
    """Both ways of cutting the matrix of similarities give the same scores."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((700, 8))
    templates = TemplateFeatures(np.arange(700), features / np.linalg.norm(features, axis=1, keepdims=True))
    expected = templates.features @ templates.features.T
    gallery, probe = rng.integers(5, size=900), rng.integers(5, 700, size=900)
    for first, second in ((gallery, probe), (probe, gallery), (probe, probe[::-1])):
        np.testing.assert_allclose(pair_scores(templates, first, second), expected[first, second], atol=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: len({same for _, same in pairs}) == 2
    ),
    st.sampled_from([0.01, 0.1, 0.3, 0.7]),
)
def test_rates_below_the_target_by_counting(pairs: list[tuple[int, bool]], fpr: float) -> None:
    scores, same = (np.array(column) for column in zip(*pairs, strict=True))
    rates = template_rates(scores.astype(float), same, fprs=[fpr], rule="below")
    allowed = [t for t in [*np.unique(scores).tolist(), 99] if (scores[~same] >= t).mean() <= fpr]
    assert rates.tpr[fpr] == pytest.approx(max((scores[same] >= t).mean() for t in allowed))
    assert rates.fpr[fpr] <= fpr
    assert rates.unresolved == ((fpr,) if fpr * (~same).sum() < 1 else ())


@given(st.integers(0, 500))
def test_nearest_rates_as_scikit_learns_roc_gives_them(seed: int) -> None:
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    rng = np.random.default_rng(seed)
    same = rng.random(400) < 0.2
    same[:2] = True, False
    scores = rng.standard_normal(400) + 1.5 * same
    rates = template_rates(scores, same)
    fpr, tpr, _ = (values[::-1] for values in roc_curve(same, scores))
    for target, rate in rates.tpr.items():
        assert rate == pytest.approx(tpr[np.argmin(np.abs(fpr - target))])


def line(*degrees: float) -> TemplateFeatures:
    """TemplateFeatures 0, 1, ... in the plane."""
    angles = np.radians(degrees)
    return TemplateFeatures(np.arange(len(degrees)), np.stack([np.cos(angles), np.sin(angles)], axis=1))


def test_search_by_hand() -> None:
    """Probes 0..3 look for subjects 7, 8, 9 (templates 4, 5, 6); probe 3 shows somebody else."""
    templates = line(2, 48, 80, 95, 0, 45, 90)
    found = search_templates(
        templates, [0, 1, 2, 3], [7, 8, 8, 1], [4, 5, 6], [7, 8, 9], ranks=(1, 2), fpirs=(0.5, 0.01)
    )
    assert (found.probes, found.mated, found.nonmated, found.subjects) == (4, 3, 1, 3)
    # probe 2 is closer to subject 9 than to its own
    assert found.rank == {1: pytest.approx(2 / 3), 2: 1.0}
    # nobody of whom probe 3 (5 degrees from subject 9) finds more may be found: only those closer than 5 degrees
    assert found.tpir[0.01] == pytest.approx(2 / 3)
    assert found.threshold[0.01] == pytest.approx(np.cos(np.radians(5)))
    assert found.unresolved == (0.5, 0.01)
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.integers(0, 300), st.sampled_from([2, 256]))
def test_search_against_loops(seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    people = rng.integers(6, size=40)
    people[:4] = 0, 1, 0, 5
    values = rng.standard_normal((40, 4)) + 2 * np.eye(6, 4)[people]
    templates = TemplateFeatures(np.arange(40), values / np.linalg.norm(values, axis=1, keepdims=True))
    gallery = np.append([0, 1], 10 + np.flatnonzero(people[10:20] < 4))
    probes = np.append([2, 3], np.arange(20, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ijb, "_CHUNK", block)
        found = search_templates(templates, probes, people[probes], gallery, people[gallery], fpirs=(0.2,))
    best: dict[int, dict[int, float]] = {}
    for probe in probes.tolist():
        similar = [(people[g], templates.features[probe] @ templates.features[g]) for g in gallery.tolist()]
        best[probe] = {p: max(s for other, s in similar if other == p) for p in {p for p, _ in similar}}
    enrolled = set(people[gallery].tolist())
    mated = [probe for probe in best if people[probe] in enrolled]
    strangers = [max(scores.values()) for probe, scores in best.items() if probe not in mated]
    for k, rate in found.rank.items():
        place = [sorted(best[p].values(), reverse=True).index(best[p][people[p]]) for p in mated]
        assert rate == pytest.approx(np.mean([number < k for number in place]))
    threshold = found.threshold[0.2]
    assert threshold is not None and np.mean([score > threshold + 1e-12 for score in strangers]) <= 0.2
    lower = [score for score in strangers if score < threshold - 1e-12]
    assert not lower or np.mean([score > max(lower) - 1e-12 for score in strangers]) > 0.2
    own = np.array([best[p][people[p]] for p in mated])
    assert found.tpir[0.2] == pytest.approx((own > threshold).mean())


ONE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: template_features(ONE[:, 0], [1], [1]), r"features are float32 \(3,\)"),
        (lambda: template_features(ONE, [1, 2], [1, 2, 3]), r"templates are int64 \(2,\) for 3 features"),
        (lambda: template_features(ONE, [1, 2, 3], [1.0, 2, 3]), "medias are float64"),
        (lambda: template_features(ONE, [1, 2, 3], [1, 2, 3], halves="sum"), "two halves of one size"),
        (lambda: template_features(ONE, [1, 2, 3], [1, 2, 3], halves="both"), "halves is 'both'"),  # type: ignore[arg-type]
        (lambda: template_features(ONE * 0, [1, 2, 3], [1, 2, 3]), "feature of image 0 is zero or not finite"),
        (lambda: template_features(ONE / [[1], [0], [1]], [1, 2, 3], [1, 2, 3]), "feature of image 1 is zero or not"),
        (lambda: template_features(ONE, [1, 2, 3], [1, 2, 3], weights=[1, -1, 1]), "none negative"),
        (lambda: template_features(ONE, [1, 2, 3], [1, 2, 3], weights=[1, 0, 1]), "template 2 cancel out"),
        (lambda: pair_scores(line(0, 9), [0, 1], [1]), "2 first and 1 second templates"),
        (lambda: pair_scores(line(0, 9), [0, 7], [1, 1]), "1 templates have no images, among them 7"),
        (lambda: pair_scores(TemplateFeatures(np.array([0, 10**9]), np.eye(2)), [5], [0]), "among them 5"),
        (lambda: pair_scores(line(0, 9), [0.0], [1.0]), "template numbers are float64"),
        (lambda: verify_templates(line(0, 9), [0], [1], [1]), "none of 1 pairs is impostor"),
        (lambda: template_rates([0.1, 0.2], [0, 2]), "labels hold other values than 0 and 1"),
        (lambda: template_rates([0.1, 0.2], [0, 1, 1]), r"\(2,\) scores for \(3,\) labels"),
        (lambda: template_rates([0.1, np.nan], [0, 1]), "NaN or infinite"),
        (lambda: template_rates([0.1, 0.2], [0, 1], fprs=[0]), r"FPR targets are \[0.0\]"),
        (lambda: search_templates(line(0, 9), [0], [1], [1], [1]), "gallery holds 1 subjects"),
        (lambda: search_templates(line(0, 9, 8), [0], [5], [1, 2], [1, 2]), "none of 1 probes shows one of the 2"),
        (lambda: search_templates(line(0, 9, 8), [0], [1, 2], [1, 2], [1, 2]), "expected one each"),
        (lambda: search_templates(line(0, 9, 8), [0], [1], [1, 2], [1, 2], fpirs=[2]), "FPIR targets"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(DataError, match=message):
        call()


def test_no_pairs_and_no_strangers() -> None:
    assert pair_scores(line(0, 9), np.empty(0, np.int64), np.empty(0, np.int64)).shape == (0,)
    found = search_templates(line(0, 9, 8), [0], [1], [1, 2], [1, 2])
    assert found.tpir == {0.01: None, 0.1: None}
    assert "Rank-1" in str(found) and "TPIR" not in str(found)
    assert "unresolved" in str(template_rates([0.3, 0.1], [1, 0]))
