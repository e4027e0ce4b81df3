"""Tables: what is printed, and that every format holds the same figures."""

from __future__ import annotations

import csv
import io

import pytest

from ppfr.reports.tables import PUBLISHED, Column, Quantity, Row, Table

TABLE = Table(
    "Accuracy & leak",
    (Column("accuracy, %", 1), Column("bytes", 0)),
    (
        Row("mine_1", (Quantity.of([90.0, 92.0]), Quantity(1234.5))),
        Row("theirs", (Quantity(99.77), Quantity(None)), PUBLISHED),
    ),
    ("Two seeds.",),
)


def test_mean_and_deviation_over_what_was_measured() -> None:
    assert Quantity.of([90.0, None, 92.0]) == Quantity(91.0, pytest.approx(2**0.5))
    assert Quantity.of([5.0]) == Quantity(5.0, None)
    assert Quantity.of([None]).text(1) == "—"


def test_print_keeps_ours_apart_from_published() -> None:
    assert TABLE.cells(TABLE.rows[0]) == ["91.0 ± 1.4", "1,234"]
    assert TABLE.cells(TABLE.rows[1]) == ["99.8", "—"]
    assert [[row.name for row in part] for part in TABLE.parts] == [["mine_1"], ["theirs"]]


def test_csv_is_unrounded_and_leaves_the_unknown_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert float(rows[0]["accuracy, %"]) == 91 and float(rows[0]["accuracy, %, deviation"]) == pytest.approx(2**0.5)
    assert rows[0]["source"] == "measured" and rows[1]["source"] == "published"
    assert rows[1]["bytes"] == "" and rows[1]["accuracy, %"] == "99.77"


def test_latex_escapes_and_rules_off_the_published() -> None:
    text = TABLE.to_latex()
    assert r"mine\_1 & 91.0 $\pm$ 1.4 & 1,234 \\" in text
    assert r"accuracy, \%" in text and r"Accuracy \& leak" in text
    assert text.index("mine") < text.rindex(r"\midrule") < text.index("theirs (published) & 99.8 & --")


def test_markdown_and_json() -> None:
    assert "| theirs (published) | 99.8 | — |" in TABLE.to_markdown()
    described = TABLE.to_dict()
    assert described["rows"][1]["values"] == [99.77, None]
    assert described["rows"][0]["deviations"][1] is None


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="mine has 1 figures, not 2"):
        Table("t", TABLE.columns, (Row("mine", (Quantity(1.0),)),))
