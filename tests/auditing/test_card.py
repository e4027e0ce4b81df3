"""The card: whole or refused, the same text for the same content, and a verdict that follows from its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ppfr.auditing.card import Card, Estimate, Finding, estimate_leak, load_card, proves, verdict, worst_finding
from ppfr.util.errors import AttackError

MakeFinding = Callable[..., Finding]


def test_a_card_survives_its_file(make_card: Callable[..., Card], tmp_path: Path) -> None:
    card = make_card()
    path = card.save(tmp_path)
    assert load_card(path) == load_card(tmp_path) == card
    assert path.read_text() == card.to_json()
    assert json.loads(card.to_json())["schema_version"] == 1
    assert set(Card.model_json_schema()["required"]) >= {"method", "findings", "verdict", "times"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2; this ppfr reads version 1"),
        ({"privacy": 0.9}, r"findings say 'linear-inversion' with privacy 0\.0"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"seed": "one"}, "seed: Input should be a valid integer"),
    ],
)
def test_a_card_that_was_tampered_with_is_refused(
    make_card: Callable[..., Card], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = make_card().save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AttackError, match=message):
        load_card(path)


def test_what_is_no_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttackError, match="does not exist; write a card with `ppfr audit"):
        load_card(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(AttackError, match="is not JSON"):
        load_card(tmp_path)


def test_an_attack_counts_only_if_its_control_passed(make_finding: MakeFinding) -> None:
    weak, doubtful = make_finding("learned-inversion", leak=0.4), make_finding("linkage", leak=0.9, control=0.1)
    assert (weak.status, doubtful.status) == ("reliable", "unreliable")
    assert worst_finding([doubtful, weak]) is weak
    assert worst_finding([doubtful]) is None
    trait = weak.model_copy(update={"finds_people": False})
    assert worst_finding([trait, weak]) is weak and worst_finding([trait]) is None
    assert "no attack that identifies people" in verdict("Toy", [trait])
    assert "learned-inversion gets 40%" in verdict("Toy", [doubtful, weak])
    assert "1 attack unreliable, not counted" in verdict("Toy", [doubtful, weak])
    assert "nothing can be said" in verdict("Toy", [doubtful])
    with pytest.raises(ValidationError, match="is 'reliable' but its control passed: False"):
        Finding(**{**doubtful.model_dump(), "status": "reliable"})
    with pytest.raises(ValidationError, match="an attack that ran has a threat"):
        Finding(attack="a", title="A", threat=None, status="reliable")


@pytest.mark.parametrize(
    ("leak", "words"),
    [(1.0, "hides nobody"), (0.6, "hides few"), (0.3, "exposes others"), (0.02, "withstood these attacks")],
)
def test_the_verdict_says_how_bad_it_is(make_finding: MakeFinding, leak: float, words: str) -> None:
    assert words in verdict("Toy", [make_finding("linear-inversion", leak=leak)])


@given(st.floats(0, 1), st.floats(0.05, 1), st.floats(0, 0.04))
def test_privacy_is_zero_at_the_ceiling_and_one_at_chance(leak: float, ceiling: float, chance: float) -> None:
    def figure(value: float) -> Estimate:
        return Estimate(value=value, low=value, high=value)

    found = estimate_leak("Rank-1", figure(leak), figure(ceiling), chance, 10)
    assert 0 <= found.privacy <= 1
    assert estimate_leak("Rank-1", figure(ceiling), figure(ceiling), chance, 10).privacy == 0
    assert estimate_leak("Rank-1", figure(chance), figure(ceiling), chance, 10).privacy == pytest.approx(1, abs=1e-4)
    assert proves(estimate_leak("Rank-1", figure(ceiling), figure(ceiling), chance, 10))
    assert not proves(estimate_leak("Rank-1", figure(chance), figure(ceiling), chance, 10))


def test_a_judge_that_guesses_measures_nothing() -> None:
    figure = Estimate(value=0.1, low=0, high=0.2)
    with pytest.raises(AttackError, match="a judge that only guesses"):
        estimate_leak("Rank-1", figure, figure, 0.1, 10)
