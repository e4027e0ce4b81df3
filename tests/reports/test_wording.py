"""Numbers and verdicts in print."""

from __future__ import annotations

import math

import pytest

from ppfr.reports import wording
from ppfr.reports.wording import Bounds


def plain(text: str) -> str:
    return text.replace(wording.THIN, " ")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (999.6, "B", "1.00 kB"),
        (150528, "B", "151 kB"),
        (1354752, "B", "1.35 MB"),
        (99_949_999, "", "99.9 M"),
        (227e6, "", "227 M"),
        (999_500_000, "", "1.00 G"),
        (5e15, "B", "5000 TB"),
        (7, "", "7"),
        (None, "B", "—"),
    ],
)
def test_scaled(value: float | None, unit: str, expected: str) -> None:
    assert plain(wording.scaled(value, unit)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (7384, "2 h 3 min"), (None, "—")],
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert plain(wording.duration(seconds)) == expected


def test_numbers_that_say_nothing_are_missing() -> None:
    values = {"a": math.nan, "b": None, "c": 0, "d": math.inf}
    assert [wording.number(values, key) for key in "abcde"] == [None, None, 0.0, None, None]
    assert wording.number(None, "a") is None


def test_bounds_are_read_in_both_spellings() -> None:
    assert wording.bounds({"x_low": 0.1, "x_high": 0.2}, "x") == Bounds(0.1, 0.2)
    assert wording.bounds({"x_interval": [0.1, 0.2]}, "x") == Bounds(0.1, 0.2)
    assert wording.bounds({"x_low": 0.1, "x_interval": None}, "x") is None
    assert wording.bounds(None, "x") is None


def test_ranges() -> None:
    assert plain(wording.percent_range(Bounds(0.901, 0.928))) == "90.1–92.8 %"
    assert plain(wording.plain_range(Bounds(-0.1, 0.2), 2)) == "-0.10 to 0.20"
    assert plain(wording.plain_range(Bounds(20.8, 21.94), 1, "dB")) == "20.8–21.9 dB"
    assert wording.percent_range(None) == wording.plain_range(None, 2) == ""
