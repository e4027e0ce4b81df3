"""The summary of a comparison: means over seeds and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.auditing.card import Card, Finding
from ppfr.experiments.comparison import MethodOutcome, card_outcomes
from ppfr.experiments.summary import dominates, summarise, summary_rows


def test_the_front_is_of_those_that_nobody_beats(
    make_card: Callable[..., Card], make_finding: Callable[..., Finding]
) -> None:
    def card(name: str, leak: float, accuracy: float | None, size: int) -> Card:
        return make_card(
            name=name, findings=[make_finding("linkage", leak=leak)], accuracy=accuracy, payload_bytes=size
        )

    cards = [
        card("good", 0.2, 0.95, 100),
        card("worse", 0.3, 0.94, 100),
        card("accurate", 1.0, 0.99, 100),
        card("small", 0.4, 0.90, 10),
        card("unknown", 0.0, None, 1),
    ]
    outcomes = [MethodOutcome(card.method.name, 0, card=card) for card in cards]
    rows = {row["method"]: row for row in summary_rows(summarise(outcomes))}
    assert {name for name, row in rows.items() if row["pareto"]} == {"good", "accurate", "small"}
    assert rows["good"]["leak"] == pytest.approx((0.2 - 0.02) / 0.98, abs=1e-5)
    assert rows["good"]["leak_low"] < rows["good"]["leak"] < rows["good"]["leak_high"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=6))
def test_every_method_is_on_the_front_or_beaten_by_one_that_is(places: list[tuple[int, int, int]]) -> None:
    rows = [{"pair_accuracy": a / 3, "leak": b / 3, "payload_bytes": c} for a, b, c in places]
    front = [row for row in rows if not any(dominates(other, row) for other in rows)]
    assert front
    for row in rows:
        assert (row in front) != any(dominates(other, row) for other in front)


def test_seeds_are_averaged_and_their_intervals_joined(
    make_card: Callable[..., Card], make_finding: Callable[..., Finding]
) -> None:
    cards = [
        make_card(name="one", findings=[make_finding("linkage", leak=leak)], accuracy=accuracy)
        for leak, accuracy in ((0.2, 0.9), (0.4, 0.8))
    ]
    outcomes = [MethodOutcome("one", seed, card=card) for seed, card in enumerate(cards)]
    (row,) = summary_rows(summarise([*outcomes, MethodOutcome("one", 2, failed="out of memory")]))
    assert row["seeds"] == [0, 1] and row["failed"] == ["seed 2: out of memory"]
    assert row["pair_accuracy"] == pytest.approx(0.85) and row["accuracy_deviation"] == pytest.approx(0.0707, abs=1e-4)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((0.79, 0.91))
    assert row["leak_rank1"] == pytest.approx(0.3) and row["worst"] == "linkage"
    assert row["leak_low"] < row["leak"] < row["leak_high"]


def test_cards_of_one_name_are_told_apart_by_their_folders(make_card: Callable[..., Card], tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a/card", "b/card", "other")]
    for place in places:
        make_card().save(place)
    labels = [one.label for one in card_outcomes([places[0], places[1] / "card.json", places[2]])]
    assert labels == [str(places[0]), str(places[1]), "other"]
