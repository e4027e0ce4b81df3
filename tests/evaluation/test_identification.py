from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.evaluation.metrics.identification import draw_search, identification
from ppfr.util.errors import DataError

Array = npt.NDArray[Any]


def faces(people: int, images: int, noise: float, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    names = np.repeat([f"person {n}" for n in rng.permutation(people)], images)
    return np.repeat(rng.normal(size=(people, 16)), images, axis=0) + noise * rng.normal(
        size=(people * images, 16)
    ), names


def obvious_rank(probe: Array, own: Any, gallery: Array, names: Array, pool: Callable[[list[float]], float]) -> int:
    """Place of the own person, 1 the best."""
    scores = {}
    for person in set(names):
        photos = gallery[names == person]
        scores[person] = pool(
            [float(probe @ photo / np.linalg.norm(probe) / np.linalg.norm(photo)) for photo in photos]
        )
    return sorted(scores, key=lambda person: -scores[person]).index(own) + 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), pool=st.sampled_from(["max", "mean"]), noise=st.floats(0.5, 4))
def test_fast_matches_slow(seed: int, pool: Any, noise: float) -> None:
    embeddings, names = faces(9, 5, noise, seed)
    search = draw_search(names, probes=2, photos=3, seed=seed)
    probes, gallery = embeddings[search.probes], embeddings[search.gallery]
    own, known = names[search.probes], names[search.gallery]
    result = identification(probes, own, gallery, known, pool=pool, ranks=(1, 3, 20), replicates=20)
    how = max if pool == "max" else np.mean
    places = np.array(
        [obvious_rank(probe, person, gallery, known, how) for probe, person in zip(probes, own, strict=True)]  # type: ignore[arg-type]
    )
    assert result.rank == {k: pytest.approx((places <= k).mean()) for k in (1, 3, 20)}
    assert result.rank[20] == 1
    assert result.rank1 == result.rank[1]
    assert (result.probes, result.people, result.photos) == (18, 9, 27)
    assert (result.genuine, result.impostor) == (18 * 3, 18 * 24)


def test_golden_rank1_and_rates(golden: Callable[[str], Any]) -> None:
    recorded = golden("hfr_metrics.npz")
    result = identification(
        recorded["probe"],
        recorded["probe_id"],
        recorded["gallery"],
        recorded["gallery_id"],
        fars=tuple(recorded["far"]),
        replicates=10,
    )
    assert result.rank1 == pytest.approx(recorded["rank1"][0], abs=2e-3)
    assert [result.tar[far] for far in recorded["far"]] == pytest.approx(recorded["vr_at_far"], abs=2e-3)
    assert (result.auc, result.eer) == pytest.approx((recorded["auc"][0], recorded["eer"][0]), abs=1e-4)


def test_embeddings_that_say_nothing_give_chance() -> None:
    names = np.repeat(np.arange(20), 4)
    search = draw_search(names)
    result = identification(
        np.ones((20, 8)), names[search.probes], np.ones((60, 8)), names[search.gallery], replicates=10
    )
    assert result.rank == pytest.approx(result.chance)
    assert result.chance == {1: 0.05, 5: 0.25}
    assert result.auc == pytest.approx(0.5)


def test_clear_photos_of_distinct_people_are_all_found() -> None:
    embeddings, names = faces(51, 4, 0.05)
    search = draw_search(names)
    result = identification(
        embeddings[search.probes], names[search.probes], embeddings[search.gallery], names[search.gallery]
    )
    assert result.rank1 == 1
    # 51 people found prove more than 93 %, not certainty
    assert result.rank_interval[1] == pytest.approx((0.93, 1), abs=1e-3)
    assert "Rank-1 100.0% [93.0%, 100.0%]" in str(result)
    assert "51 people" in result.interval


def test_intervals_resample_people_not_probes() -> None:
    embeddings, names = faces(12, 30, 2.0)
    search = draw_search(names, probes=20, photos=3)
    arguments = (
        embeddings[search.probes],
        names[search.probes],
        embeddings[search.gallery],
        names[search.gallery],
    )
    result = identification(*arguments)
    low, high = result.rank_interval[1]
    assert low < result.rank1 < high
    independent = 2 * 1.96 * np.sqrt(result.rank1 * (1 - result.rank1) / 240)
    assert high - low > 1.3 * independent
    assert identification(*arguments) == result
    assert identification(*arguments, seed=1).rank_interval != result.rank_interval


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    probes=st.integers(1, 2),
    photos=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_a_search_never_meets_its_own_photo(sizes: list[int], probes: int, photos: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    able = sorted(person for person, size in enumerate(sizes) if size >= probes + photos)
    if len(able) < 2:
        with pytest.raises(DataError, match="expected 2 people"):
            draw_search(labels, probes=probes, photos=photos, seed=seed)
        return
    search = draw_search(labels, probes=probes, photos=photos, seed=seed)
    assert not set(search.probes) & set(search.gallery)
    assert sorted(labels[search.probes]) == sorted(able * probes)
    assert sorted(labels[search.gallery]) == sorted(able * photos)
    assert len(set(search.probes)) == len(search.probes)
    assert len(set(search.gallery)) == len(search.gallery)


def test_refusals() -> None:
    ones = np.ones((2, 4))
    with pytest.raises(DataError, match="1 probe people are not in the gallery, among them 'c'"):
        identification(ones, ["a", "c"], ones, ["a", "b"])
    with pytest.raises(DataError, match="probes are 4-d, the gallery 3-d"):
        identification(ones, ["a", "b"], ones[:, :3], ["a", "b"])
    with pytest.raises(DataError, match=r"\(3,\) probe labels for 2 embeddings"):
        identification(ones, ["a", "b", "b"], ones, ["a", "b"])
    with pytest.raises(DataError, match="pool 'median'"):
        identification(ones, ["a", "b"], ones, ["a", "b"], pool="median")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="whole numbers from 1 on"):
        identification(ones, ["a", "b"], ones, ["a", "b"], ranks=(0,))
    with pytest.raises(DataError, match="0 probes and 3 photos"):
        draw_search([0, 0, 1, 1], probes=0)
