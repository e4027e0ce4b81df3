"""Exact search: always what searching one by one gives, through any order of adding, replacing and removing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.serving.search import index as module
from ppfr.serving.search.index import ExactIndex, Match
from ppfr.util.errors import GalleryError


def vectors(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def one_by_one(held: dict[str, torch.Tensor], query: torch.Tensor, limit: int) -> list[tuple[str, float]]:
    scores = [(key, float(np.dot(_unit(value), _unit(query)))) for key, value in held.items()]
    return sorted(scores, key=lambda pair: -pair[1])[:limit]


def _unit(value: torch.Tensor) -> np.ndarray:
    array = value.double().numpy()
    return array / np.linalg.norm(array)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 120),
    size=st.sampled_from([1, 3, 64, 130]),
    limit=st.integers(1, 20),
    rows=st.sampled_from([1, 7, 32]),
    seed=st.integers(0, 10_000),
    alike=st.floats(0, 10),
)
def test_it_finds_what_one_by_one_finds(count: int, size: int, limit: int, rows: int, seed: int, alike: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", rows)
        patch.setattr(module, "_PAIRS", 50)
        given_templates = vectors(count, size, seed) + alike
        held = {f"key{row}": template for row, template in enumerate(given_templates)}
        searched = ExactIndex(size)
        searched.add(list(held), given_templates)
        for key in list(held)[::3]:
            searched.remove([key, "not there"])
            del held[key]
        changed = vectors(count, size, seed + 1)
        for key, template in zip(list(held)[::2], changed, strict=False):
            held[key] = template
            searched.add([key], template[None])
        assert len(searched) == len(held)
        for query in vectors(3, size, seed + 2):
            found = searched.search(query[None], limit)[0]
            wanted = one_by_one(held, query, limit)
            assert len(found) == len(wanted)
            truth = dict(one_by_one(held, query, len(held)))
            for match, (_, score) in zip(found, wanted, strict=True):
                # keys of nearly equal scores may change places, scores may not
                assert match.score == pytest.approx(score, abs=1e-4)
                assert truth[match.key] == pytest.approx(match.score, abs=1e-4)
            assert len({match.key for match in found}) == len(found)


def test_many_queries_give_what_each_gives_alone() -> None:
    templates, queries = vectors(500, 32, 0), vectors(150, 32, 1)
    searched = ExactIndex(32)
    searched.add([str(row) for row in range(500)], templates)
    together = searched.search(queries, 5)
    assert together == [searched.search(query[None], 5)[0] for query in queries]


def test_a_template_finds_itself_and_memory_is_two_bytes_a_value() -> None:
    searched = ExactIndex(512)
    templates = vectors(2 * 16384, 512, 0)
    searched.add([str(row) for row in range(len(templates))], 5 * templates)
    assert searched.nbytes / templates.numel() < 2.02
    found = searched.search(templates[[0, 20000]], 1)
    assert [one[0].key for one in found] == ["0", "20000"]
    assert found[1][0].score == pytest.approx(1, abs=1e-4)


def test_a_removed_template_leaves_no_bytes_behind() -> None:
    searched = ExactIndex(8)
    searched.add(["a", "b"], vectors(2, 8, 0))
    searched.remove(["a", "b"])
    assert searched.search(vectors(1, 8, 1), 3) == [[]]
    assert not any(block.high.any() or block.low.any() for block in searched._blocks)


def test_searches_while_others_add() -> None:
    searched = ExactIndex(16)
    searched.add(["first"], torch.ones(1, 16))
    wrong: list[list[Match]] = []

    def look() -> None:
        for _ in range(50):
            found = searched.search(torch.ones(1, 16), 1)[0]
            if found[0].key != "first":
                wrong.append(found)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(50):
        searched.add([str(number)], -torch.ones(1, 16))
    for thread in threads:
        thread.join()
    assert not wrong and len(searched) == 51


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda index: index.add(["a"], torch.ones(1, 7)), r"templates have shape \(1, 7\); expected \(N, 8\)"),
        (lambda index: index.add(["a"], torch.zeros(1, 8)), "only zeros"),
        (lambda index: index.add(["a"], torch.full((1, 8), torch.nan)), "not finite"),
        (lambda index: index.add(["a"], torch.ones(2, 8)), "1 keys for 2 templates"),
        (lambda index: index.add(["a", "a"], torch.ones(2, 8)), "a key stands twice"),
        (lambda index: index.search(torch.ones(1, 8), 0), "limit is 0"),
        (lambda index: ExactIndex(0), "expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused(act: object, message: str) -> None:
    searched = ExactIndex(8)
    with pytest.raises(GalleryError, match=message):
        act(searched)  # type: ignore[operator]
    assert len(searched) == 0
