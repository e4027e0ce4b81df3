"""The pages of audits: everything told, everything escaped, nothing loaded from elsewhere; and the Pareto front."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.auditing.card import Card, Finding
from ppfr.reports.audits import (
    Exhibit,
    Recovered,
    compare,
    render_card,
    render_comparison,
    unequal,
    write_card_page,
    write_comparison,
)
from ppfr.util.errors import DataError

MakeCard = Callable[..., Card]
MakeFinding = Callable[..., Finding]


def exhibit() -> Exhibit:
    pictures = [np.full((112, 112, 3), shade, np.uint8) for shade in (10, 120, 250)]
    return Exhibit("Linear <inversion>", tuple(Recovered(label, *pictures, 0.5) for label in ("best", "median")))


def test_a_card_page_tells_all_and_loads_nothing(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card()
    page = write_card_page(card, [exhibit()], tmp_path, command="ppfr audit a<b", seen_caption="pixels").read_text()
    assert card.verdict in page
    assert "Linear &lt;inversion&gt;" in page and "ppfr audit a&lt;b" in page and "Toy &lt;toy&gt;" in page
    assert page.count("data:image/png") == 6
    assert "This page shows faces" in page
    assert "gets hold of one payload" in page and "photos of other people" in page
    assert (
        "payload with bits 8" in page
        and "unreliable" in page
        and "not applicable" in page
        and "40 people instead of all" in page
    )
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page


def test_a_card_without_faces_or_leaks_still_makes_a_page(make_card: MakeCard, make_finding: MakeFinding) -> None:
    unreliable = make_card(findings=[make_finding("linkage", control=0.1)], accuracy=None)
    page = render_card(unreliable)
    assert "nothing can be said" in page and "This page shows faces" not in page and "data:image" not in page
    synthetic = make_card(faces=make_card().faces.model_copy(update={"synthetic": True}))
    assert "synthetic faces" in render_card(synthetic)


def test_the_front_is_of_those_that_nobody_beats(make_card: MakeCard, make_finding: MakeFinding) -> None:
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
    rows = {row["method"]: row for row in compare(cards)}
    assert {name for name, row in rows.items() if row["pareto"]} == {"good", "accurate", "small"}
    assert rows["good"]["leak"] == pytest.approx((0.2 - 0.02) / 0.98, abs=1e-5)
    assert rows["good"]["leak_interval"][0] < rows["good"]["leak"] < rows["good"]["leak_interval"][1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=6))
def test_every_method_is_on_the_front_or_beaten_by_one_that_is(places: list[tuple[int, int, int]]) -> None:
    from ppfr.reports.audits import _dominates

    rows = [{"accuracy": a / 3, "leak": b / 3, "payload_bytes": c} for a, b, c in places]
    front = [row for row in rows if not any(_dominates(other, row) for other in rows)]
    assert front
    for row in rows:
        assert (row in front) != any(_dominates(other, row) for other in front)


def test_comparison_files(make_card: MakeCard, make_finding: MakeFinding, tmp_path: Path) -> None:
    cards = [
        make_card(name="one", findings=[make_finding("linkage", leak=0.3)], accuracy=0.9),
        make_card(name="two", profile="full", accuracy=0.99),
    ]
    page, data = write_comparison(cards, tmp_path)
    listed = json.loads(data.read_text())
    assert [row["method"] for row in listed["methods"]] == ["one", "two"]
    text = page.read_text()
    assert "on the front" in text and "different profiles: fast; full" in text and text.count('class="plot"') == 2
    assert unequal(cards[:1]) == []
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    with pytest.raises(DataError, match="nothing to compare"):
        render_comparison([])
