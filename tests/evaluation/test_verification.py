from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from ppfr.evaluation.metrics.roc import roc, roc_figures
from ppfr.evaluation.metrics.verification import (
    THRESHOLDS,
    kfold,
    squared_distances,
    verification,
    verify_distances,
)
from ppfr.util.errors import DataError

Golden = Callable[[str], Any]
Array = npt.NDArray[Any]


def world(people: int = 30, images: int = 8, noise: float = 1.3, seed: int = 0) -> tuple[Array, Array]:
    """Embeddings (N, 32) of people who differ, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), images)
    return rng.normal(size=(people, 32))[labels] + noise * rng.normal(size=(len(labels), 32)), labels


def pairs(labels: Array, count: int = 400, seed: int = 0) -> tuple[Array, Array]:
    """Indices of `count` genuine and `count` impostor pairs, in turn; each person has as many images."""
    rng = np.random.default_rng(seed)
    images = np.bincount(labels)[0]
    person, image = rng.integers(labels.max() + 1, size=2 * count), rng.integers(images, size=2 * count)
    other_person = (person + rng.integers(1, labels.max() + 1, size=2 * count)) % (labels.max() + 1)
    other_image = (image + rng.integers(1, images, size=2 * count)) % images
    same = np.arange(2 * count) % 2 == 0
    return person * images + image, np.where(same, person, other_person) * images + other_image


# ---------------------------------------------------------------- the reference's protocol


@pytest.mark.parametrize("case", ["overlap", "easy", "unbalanced"])
def test_folds_match_the_reference(golden: Golden, case: str) -> None:
    recorded = golden("verification.npz")
    embeddings = recorded[f"{case}/embeddings"].astype(np.float64)
    same = recorded[f"{case}/issame"]
    folds = kfold(squared_distances(embeddings[::2], embeddings[1::2], normalise=False), same)
    for name, value in {
        "accuracy": folds.accuracies,
        "best_thresholds": folds.thresholds,
        "tpr": folds.tpr,
        "fpr": folds.fpr,
        "mean": [folds.accuracies.mean(), folds.thresholds.mean()],
    }.items():
        expected = recorded[f"{case}/{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(np.flatnonzero(same & ~folds.verdicts), recorded[f"{case}/bad_cases"])


def test_verification_reports_those_folds(golden: Golden) -> None:
    recorded = golden("verification.npz")
    embeddings, same = recorded["unbalanced/embeddings"], recorded["unbalanced/issame"]
    for normalise in (True, False):  # the embeddings are unit vectors already
        result = verification(embeddings[::2], embeddings[1::2], same, normalise=normalise, replicates=50)
        assert result.fold_accuracies == pytest.approx(recorded["unbalanced/accuracy"], abs=1e-12)
        assert (result.accuracy, result.threshold) == pytest.approx(recorded["unbalanced/mean"], abs=1e-12)


def test_roc_matches_the_heterogeneous_reference(golden: Golden) -> None:
    recorded = golden("hfr_metrics.npz")
    gallery, probe = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (recorded["gallery"], recorded["probe"])
    )
    same = recorded["probe_id"][:, None] == recorded["gallery_id"]
    curve = roc((probe @ gallery.T).ravel(), same.ravel())
    assert curve.auc == pytest.approx(recorded["auc"][0], abs=1e-4)
    assert curve.eer == pytest.approx(recorded["eer"][0], abs=1e-4)
    found = [curve.tar_at(far) for far in recorded["far"]]
    assert found == pytest.approx(recorded["vr_at_far"], abs=2e-3)


@pytest.mark.parametrize("kind", ["first_half", "flip_sum"])
def test_nearest_far_matches_the_ijb_reference(golden: Golden, kind: str) -> None:
    recorded = golden("ijb.npz")
    curve = roc(recorded[f"{kind}/score"], recorded["label"]).corners()
    points = [curve.index_at(far, "nearest") for far in recorded["fpr_targets"]]
    found = np.stack([curve.far[points], curve.tar[points], curve.thresholds[points]], axis=1)
    np.testing.assert_allclose(found[:, :2], recorded[f"{kind}/tpr_at_fpr"][:, :2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], recorded[f"{kind}/tpr_at_fpr"][:, 2], rtol=0, atol=1e-5)


# ---------------------------------------------------------------- slow and obvious


def obvious_folds(distances: Array, same: Array, folds: int, thresholds: Array) -> tuple[list[Any], ...]:
    accuracies, chosen = [], []
    for test in np.array_split(np.arange(len(same)), folds):
        train = np.setdiff1d(np.arange(len(same)), test)
        best = max(thresholds, key=lambda t: (int(((distances[train] < t) == same[train]).sum()), -t))
        accuracies.append(float(((distances[test] < best) == same[test]).mean()))
        chosen.append(float(best))
    return accuracies, chosen


def obvious_tar(scores: Array, same: Array, target: float) -> float:
    tar = 0.0
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        if accepted[~same].mean() <= target:
            tar = max(tar, float(accepted[same].mean()))
    return tar


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(12, 60),
    folds=st.integers(2, 12),
    decimals=st.integers(1, 3),
)
def test_fast_matches_slow(seed: int, count: int, folds: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    same[:2] = True, False
    # rounded, so that ties and distances on a threshold occur
    distances = np.round(rng.random(count) + 0.4 * ~same, decimals)
    grid = np.round(np.arange(0, 1.5, 0.1), 1)
    found = kfold(distances, same, folds=folds, thresholds=grid)
    accuracies, chosen = obvious_folds(distances, same, folds, grid)
    assert found.accuracies.tolist() == pytest.approx(accuracies, abs=1e-12)
    assert found.thresholds.tolist() == chosen
    curve = roc(-distances, same)
    assert curve.auc == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
    for target in (0.02, 0.1, 0.3):
        assert curve.tar_at(target) == pytest.approx(obvious_tar(-distances, same, target))
    far, tar, thresholds = roc_curve(same, -distances)
    corners = curve.corners()
    np.testing.assert_allclose([corners.far, corners.tar], [far, tar], atol=1e-12)
    np.testing.assert_array_equal(corners.thresholds, thresholds)


# ---------------------------------------------------------------- properties


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 9))
def test_auc_and_eer_know_only_the_order(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    same = np.arange(60) % 3 == 0
    scores = np.round(rng.normal(size=60) + same, 1)
    curve, bent = roc(scores, same), roc(np.exp(scale * scores) - 3, same)
    assert (bent.auc, bent.eer) == (curve.auc, curve.eer)
    assert 0 <= curve.eer <= 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_swapping_the_sides_of_pairs_changes_nothing(seed: int) -> None:
    embeddings, labels = world(people=8, seed=seed)
    first, second = pairs(labels, 40, seed)
    swap = np.random.default_rng(seed).random(len(first)) < 0.5
    a, b = np.where(swap, second, first), np.where(swap, first, second)
    one = verification(embeddings[first], embeddings[second], labels[first] == labels[second], replicates=20)
    other = verification(embeddings[a], embeddings[b], labels[a] == labels[b], replicates=20)
    assert one.to_dict() == other.to_dict()


def test_perfect_separation() -> None:
    embeddings, labels = world(noise=0.05)
    first, second = pairs(labels)
    result = verification(
        embeddings[first],
        embeddings[second],
        labels[first] == labels[second],
        groups=(labels[first], labels[second]),
    )
    assert (result.accuracy, result.auc, result.eer) == (1, 1, 0)
    assert set(result.tar.values()) == {1.0}
    # 30 people without an error bound the error at 11 %, not at 0
    assert (result.accuracy_low, result.accuracy_high) == pytest.approx((0.8865, 1), abs=1e-4)


def test_noise_gives_chance() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(2000) % 2 == 0
    result = verification(rng.normal(size=(2000, 16)), rng.normal(size=(2000, 16)), same, replicates=100)
    assert result.auc == pytest.approx(0.5, abs=0.05)
    assert result.accuracy == pytest.approx(0.5, abs=0.05)
    assert result.eer == pytest.approx(0.5, abs=0.05)


def test_length_matters_only_without_normalising() -> None:
    embeddings, labels = world()
    first, second = pairs(labels)
    same = labels[first] == labels[second]
    lengths = np.random.default_rng(1).uniform(0.1, 9, size=(len(embeddings), 1))
    stretched = embeddings * lengths
    one = verification(embeddings[first], embeddings[second], same, replicates=10)
    other = verification(torch.tensor(stretched[first]), torch.tensor(stretched[second]), same, replicates=10)
    assert other.accuracy == one.accuracy
    assert other.auc == pytest.approx(one.auc, abs=1e-12)
    raw = verification(stretched[first], stretched[second], same, normalise=False, replicates=10)
    assert raw.auc is not None
    assert one.auc is not None
    assert raw.auc < one.auc - 0.02


# ---------------------------------------------------------------- intervals and what is reported


def test_people_make_wider_intervals_than_pairs() -> None:
    embeddings, labels = world(people=15, images=12)
    first, second = pairs(labels, 1000)
    same = labels[first] == labels[second]
    by_pairs = verification(embeddings[first], embeddings[second], same)
    by_people = verification(embeddings[first], embeddings[second], same, groups=(labels[first], labels[second]))
    assert by_people.accuracy == by_pairs.accuracy
    assert by_people.accuracy_high - by_people.accuracy_low > 1.3 * (by_pairs.accuracy_high - by_pairs.accuracy_low)
    assert "15 people" in by_people.interval
    assert "2000 pairs" in by_pairs.interval
    for result in (by_pairs, by_people):
        assert result.accuracy_low < result.accuracy < result.accuracy_high
        assert result.threshold_low <= result.threshold <= result.threshold_high
        for far, tar in result.tar.items():
            interval = result.tar_interval[far]
            assert interval is not None
            assert tar is not None
            assert interval.low <= tar <= interval.high


def test_interval_covers_the_truth() -> None:
    # what 20 people can tell of a population of 800, in 40 tries; resampling pairs covers it in 27
    everyone, labels = world(people=800, images=6, noise=1.6)
    first, second = pairs(labels, 8000)
    truth = roc_figures(
        -squared_distances(everyone[first], everyone[second]),
        labels[first] == labels[second],
        replicates=2,
    )
    covered = 0
    for start in range(0, 800, 20):
        rows = np.isin(labels, np.arange(start, start + 20))
        mine, own = everyone[rows], labels[rows] - start
        first, second = pairs(own, 300)
        result = roc_figures(
            -squared_distances(mine[first], mine[second]),
            own[first] == own[second],
            groups=(own[first], own[second]),
            replicates=200,
        )
        assert result.auc_interval is not None
        assert truth.auc is not None
        covered += result.auc_interval.low <= truth.auc <= result.auc_interval.high
    assert covered >= 35


def test_far_targets_below_one_false_accept_are_named() -> None:
    distances = np.linspace(0, 3, 60)
    result = verify_distances(distances, np.arange(60) % 2 == 0, fars=(0.1, 0.03, 0.001), replicates=10)
    assert result.unresolved == (0.03, 0.001)
    assert "TAR@FAR=0.001 3.33% (unresolved)" in str(result)


def test_one_kind_of_pair_has_no_roc() -> None:
    distances = np.linspace(0.5, 1.4, 10)
    result = verify_distances(distances, np.ones(10, bool), replicates=100)
    assert result.auc is result.eer is result.auc_interval is None
    assert set(result.tar.values()) == {None}
    # the last pair is refused by the best threshold of the nine others
    assert result.accuracy == pytest.approx(0.9)
    assert result.accuracy_low < 0.9 < result.accuracy_high
    with pytest.raises(DataError, match="none of 10 pairs is impostor"):
        roc(-distances, np.ones(10, bool))


def test_result_becomes_json() -> None:
    result = verify_distances(np.linspace(0, 3, 40), np.arange(40) < 20, replicates=10)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["tar"]["0.01"] == result.tar[0.01]
    assert plain["fold_thresholds"] == list(result.fold_thresholds)
    assert plain["pairs"] == 40


def test_default_thresholds_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        THRESHOLDS[0] = 1


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("first", "second", "same", "options", "message"),
    [
        (
            np.ones((4, 3)),
            np.ones((4, 2)),
            [1, 0, 1, 0],
            {},
            r"'first' has shape \(4, 3\), 'second' \(4, 2\)",
        ),
        (np.ones(4), np.ones(4), [1, 0, 1, 0], {}, r"expected embeddings \(N, D\)"),
        (np.ones((4, 3)), np.full((4, 3), np.nan), [1, 0, 1, 0], {}, "4 rows with NaN or infinity"),
        (np.ones((4, 3)), np.zeros((4, 3)), [1, 0, 1, 0], {}, "'second' row 0 is zero"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 1], {}, r"\(4,\) values for \(3,\) truths"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 2, 0], {}, "same holds"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 1, 0], {}, "10 folds of 4 pairs"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 1, 0], {"folds": 1}, "1 folds of 4 pairs"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 1, 0], {"folds": 2, "thresholds": [2, 1]}, "a rising list"),
        (np.ones((4, 3)), np.ones((4, 3)), [1, 0, 1, 0], {"folds": 2, "fars": [1]}, "FAR targets are"),
        (
            np.ones((4, 3)),
            np.ones((4, 3)),
            [1, 0, 1, 0],
            {"folds": 2, "groups": ("aaaa", "aaaa")},
            r"groups have shapes \(\), \(\)",
        ),
    ],
)
def test_refusals(first: Array, second: Array, same: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        verification(first, second, same, **options)


def test_unknown_far_rule_is_refused() -> None:
    with pytest.raises(DataError, match="FAR rule 'closest'"):
        roc([1, 0], [1, 0]).tar_at(0.1, "closest")  # type: ignore[arg-type]
