"""Tables of a comparison: means and deviations over seeds, ours apart from what is published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ppfr.auditing.card import Card
from ppfr.experiments.comparison import MethodOutcome
from ppfr.experiments.summary import summarise
from ppfr.reports.comparison_tables import comparison_tables
from ppfr.reports.tables import Table

COST = {
    "payload_bytes_raw": 2000.0,
    "payload_bytes_sent": 1000.0,
    "client_ms": 1.0,
    "server_ms": 2.0,
    "client_parameters": 0,
    "server_parameters": 1_000_000,
    "client_macs": 0,
    "server_macs": 1_000_000,
    "device": "cpu",
    "threads": 1,
}


def outcome(label: str, seed: int, accuracy: float, card: Card | None = None, **more: Any) -> MethodOutcome:
    verification = {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.02,
        "accuracy_high": accuracy + 0.02,
        "tar": {"0.01": 0.5},
        "auc": 0.97,
        "eer": 0.1,
    }
    figures = {
        "label": label,
        "method": label,
        "title": label.title(),
        "remarks": ["noted"],
        "train_seconds": 10.0,
        "verification": verification,
        "cost": COST,
        **more,
    }
    return MethodOutcome(label, seed, figures, card)


def tables_of(outcomes: list[MethodOutcome]) -> dict[str, Table]:
    return comparison_tables(summarise(outcomes))


def protocol(rank1: float, deviation: float | None, *, simulated: bool = True) -> dict[str, Any]:
    spread = None if deviation is None else {"Rank-1": deviation}
    return {
        "protocol": "lamp-hq",
        "title": "LAMP-HQ",
        "simulated": simulated,
        "mean": {"Rank-1": rank1, "VR@FAR=1%": 0.5},
        "deviation": spread,
    }


def test_three_seeds_give_mean_and_deviation() -> None:
    tables = tables_of([outcome("one", seed, accuracy) for seed, accuracy in enumerate((0.7, 0.8, 0.9))])
    (row,) = tables["accuracy"].rows
    assert row.values[0].value == pytest.approx(80) and row.values[0].deviation == pytest.approx(10)
    # the interval covers that of every seed
    assert [quantity.value for quantity in row.values[1:3]] == pytest.approx([68, 92])
    assert tables["accuracy"].cells(row)[0] == "80.00 ± 10.00"
    assert tables["accuracy"].notes == ("Mean ± sample deviation over 3 seeds.",)


def test_a_figure_from_one_seed_says_so() -> None:
    alone = tables_of([outcome("one", 0, 0.7)])["accuracy"]
    assert alone.notes[0].startswith("One seed: no deviation is known") and alone.cells(alone.rows[0])[0] == "70.00"
    mixed = tables_of([outcome("one", 0, 0.7), outcome("two", 0, 0.7), outcome("two", 1, 0.8)])["accuracy"]
    assert mixed.notes == ("Mean ± sample deviation over 2 seeds.", "One seed only: One.")


def test_published_figures_stand_apart() -> None:
    table = tables_of([outcome("one", 0, 0.7)])["published"]
    assert {row.source for row in table.rows} == {"published"}
    assert "not comparable" in table.notes[-1]
    marked = tables_of([outcome("peep", 0, 0.7, title="PEEP"), outcome("one", 0, 0.7)])["published"]
    assert [row.name for row in marked.rows if row.note] == ["PEEP"]


def test_the_leak_table_has_every_figure_of_the_worst_attack(make_card: Callable[..., Card]) -> None:
    table = tables_of([outcome("one", 0, 0.7, make_card(name="one"))])["leak"]
    (row,) = table.rows
    found = dict(zip((column.name for column in table.columns), row.values, strict=True))
    assert found["privacy score"].value == 0 and found["people found, %"].value == 100
    assert found["by guessing, %"].value == 2 and found["SSIM"].value == 0.9 and found["PSNR, dB"].value is None
    assert found["attacks counted"].value == 1 and row.note == "linear-inversion"


def test_the_heterogeneous_table_has_ours_above_the_published() -> None:
    folds = [outcome("one", 0, 0.7, heterogeneous=[protocol(0.6, 0.1)])]
    table = tables_of(folds)["lamp-hq"]
    ours, published = table.parts
    assert [row.name for row in ours] == ["simulated, One"] and ours[0].values[0].value == pytest.approx(60)
    assert ours[0].values[0].deviation == pytest.approx(10)
    assert "SIMULATED" in table.notes[0]
    rates = {row.name: row.values[0].value for row in published}
    assert rates["PrivacyHFR"] == 99.0 and rates["InstaHide"] == 74.7
    seeds = [outcome("one", seed, 0.7, heterogeneous=[protocol(rate, 0.3)]) for seed, rate in enumerate((0.5, 0.7))]
    over_seeds = tables_of(seeds)["lamp-hq"].rows[0].values[0]
    assert over_seeds.value == pytest.approx(60) and over_seeds.deviation == pytest.approx(14.142, abs=1e-3)
    real = tables_of([outcome("one", 0, 0.7, heterogeneous=[protocol(0.6, None, simulated=False)])])["lamp-hq"]
    assert real.rows[0].name == "One" and not any("SIMULATED" in note for note in real.notes)
