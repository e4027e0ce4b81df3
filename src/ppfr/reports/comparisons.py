"""What `ppfr compare` writes: tables of accuracy, leak, bytes and cost in four formats, and one page with plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ppfr.auditing.card import Card
from ppfr.experiments.comparison import Outcome
from ppfr.reports import wording
from ppfr.reports.audits import compare, unequal
from ppfr.reports.figures import Point, bytes_plot, leakage_plot
from ppfr.reports.pages import render
from ppfr.reports.published import published_tables
from ppfr.reports.report import SYNTHETIC_MARK
from ppfr.reports.tables import PUBLISHED, Column, Quantity, Row, Table
from ppfr.util.files import atomic_write

TABLES_FILE, PAGE_FILE = "tables", "comparison.html"
_NO_SPREAD = "One seed: no deviation is known, and small differences mean nothing."


@dataclass(frozen=True)
class _Line:
    """One method of the comparison over its seeds."""

    label: str
    figures: tuple[Mapping[str, Any], ...]
    cards: tuple[Card, ...]
    failures: tuple[str, ...]

    @property
    def title(self) -> str:
        """The method's title, with the label where that says more."""
        if not self.figures:
            return self.label
        first = self.figures[0]
        return str(first["title"]) if first["label"] == first["method"] else f"{first['title']} ({self.label})"


def write_comparison_tables(
    outcomes: Sequence[Outcome], folder: Path | str, *, command: str = "", facts: Sequence[str] = ()
) -> list[Path]:
    """Write `tables.json`, one CSV and one LaTeX file for each table, and `comparison.html`; returns their paths."""
    folder = Path(folder)
    lines = _lines(outcomes)
    tables = comparison_tables(outcomes)
    written = [folder / f"{TABLES_FILE}.json"]
    content = {
        "schema_version": 1,
        "command": command,
        "tables": {name: table.to_dict() for name, table in tables.items()},
        "failed": {line.label: list(line.failures) for line in lines if line.failures},
    }
    atomic_write(written[0], json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    for name, table in tables.items():
        for suffix, text in (("csv", table.to_csv()), ("tex", table.to_latex())):
            written.append(folder / TABLES_FILE / f"{name}.{suffix}")
            atomic_write(written[-1], text)
    written.append(folder / PAGE_FILE)
    atomic_write(written[-1], _page(lines, tables, command, facts))
    return written


def comparison_tables(outcomes: Sequence[Outcome]) -> dict[str, Table]:
    """All tables by name: accuracy, leak, cost, published, and one for each heterogeneous protocol."""
    lines = [line for line in _lines(outcomes) if line.figures]
    tables = {"accuracy": _accuracy(lines), "cost": _cost(lines)}
    if any(line.cards for line in lines):
        tables["leak"] = _leak(lines)
    for table in published_tables():
        protocol = table.get("protocol")
        if protocol is None:
            tables["published"] = _published(table)
        elif any(_protocol(figures, protocol) for line in lines for figures in line.figures):
            tables[protocol] = _heterogeneous(lines, table, protocol)
    return tables


def _lines(outcomes: Sequence[Outcome]) -> list[_Line]:
    labels = list(dict.fromkeys(outcome.label for outcome in outcomes))
    grouped = [[outcome for outcome in outcomes if outcome.label == label] for label in labels]
    return [
        _Line(
            label,
            tuple(one.figures for one in group if one.figures is not None),
            tuple(one.card for one in group if one.card is not None),
            tuple(f"seed {one.seed}: {one.failed}" for one in group if one.failed),
        )
        for label, group in zip(labels, grouped, strict=True)
    ]


def _seeds(lines: Sequence[_Line]) -> tuple[str, ...]:
    """What readers must know of the deviations."""
    if not lines:
        return ()
    counts = {len(line.figures) for line in lines}
    if counts == {1}:
        return (_NO_SPREAD,)
    told = f"Mean ± sample deviation over {max(counts)} seeds."
    single = [line.title for line in lines if len(line.figures) == 1]
    return (told, f"One seed only: {', '.join(single)}.") if single else (told,)


# ---------------------------------------------------------------------------------------------------------- tables
def _accuracy(lines: Sequence[_Line]) -> Table:
    columns = (
        Column("pair accuracy, %", 2),
        Column("95 % interval from, %", 1),
        Column("to, %", 1),
        Column("TAR at FAR 1 %, %", 1),
        Column("EER, %", 2),
    )
    rows = []
    for line in lines:
        verified = [figures["verification"] for figures in line.figures]
        rows.append(
            Row(
                line.title,
                (
                    Quantity.of([_percent(one["accuracy"]) for one in verified]),
                    Quantity(min(100 * one["accuracy_low"] for one in verified)),
                    Quantity(max(100 * one["accuracy_high"] for one in verified)),
                    Quantity.of([_percent(_at(one.get("tar"), 0.01)) for one in verified]),
                    Quantity.of([_percent(one.get("eer")) for one in verified]),
                ),
                note=" ".join(line.figures[0]["remarks"]),
            )
        )
    return Table("Accuracy on people who are not in training", columns, tuple(rows), _seeds(lines))


def _leak(lines: Sequence[_Line]) -> Table:
    columns = (Column("privacy score", 2), Column("worst leak, % of clear photos'", 1), Column("attacks counted", 0))
    rows = []
    for line in lines:
        if not line.cards:
            continue
        found = [compare([card])[0] for card in line.cards]
        counted = [sum(one.status == "reliable" for one in card.findings) for card in line.cards]
        worst = sorted({str(one["worst"]) for one in found if one["worst"]})
        rows.append(
            Row(
                line.title,
                (
                    Quantity.of([one["privacy"] for one in found]),
                    Quantity.of([_percent(one["leak"]) for one in found]),
                    Quantity.of([float(number) for number in counted]),
                ),
                note=", ".join(worst),
            )
        )
    told = "Privacy score: 0 as the clear photograph, 1 as guessing, by the worst attack that proved itself."
    return Table("What the worst attack gets", columns, tuple(rows), (told, *_seeds(lines)))


def _cost(lines: Sequence[_Line]) -> Table:
    columns = (
        Column("payload raw, kB", 1),
        Column("payload sent, kB", 1),
        Column("client, ms", 2),
        Column("server, ms", 2),
        Column("client parameters, M", 2),
        Column("server parameters, M", 2),
        Column("training, s", 0),
    )
    rows = []
    for line in lines:
        costs = [figures["cost"] for figures in line.figures]
        rows.append(
            Row(
                line.title,
                (
                    Quantity(costs[0]["payload_bytes_raw"] / 1e3),
                    Quantity(costs[0]["payload_bytes_sent"] / 1e3),
                    *(Quantity.of([one[f"{side}_ms"] for one in costs]) for side in ("client", "server")),
                    *(Quantity(costs[0][f"{side}_parameters"] / 1e6) for side in ("client", "server")),
                    Quantity.of([figures["train_seconds"] for figures in line.figures]),
                ),
            )
        )
    cost = lines[0].figures[0]["cost"] if lines else {"device": "-", "threads": 0}
    told = f"One image at a time on {cost['device']}, {cost['threads']} threads."
    return Table("Cost of a query", columns, tuple(rows), (told,))


def _published(table: Mapping[str, Any]) -> Table:
    columns = tuple(Column(f"{name}, %", table["digits"]) for name in table["columns"])
    rows = tuple(
        Row(row["method"], tuple(Quantity(value) for value in row["values"]), PUBLISHED) for row in table["rows"]
    )
    note = "Other data, other networks: beside ours, not comparable with it."
    return Table(f"Published: {table['title']}", columns, rows, (table["training"] + ".", table["note"], note))


def _heterogeneous(lines: Sequence[_Line], published: Mapping[str, Any], protocol: str) -> Table:
    found = [(line, [_protocol(figures, protocol) for figures in line.figures]) for line in lines]
    simulated = any(one["simulated"] for _, several in found for one in several if one)
    columns = tuple(Column(name, published["digits"]) for name in ("Rank-1", "VR@FAR=1%", "VR@FAR=0.1%", "AUC", "EER"))
    rows = []
    for line, several in found:
        known = [one for one in several if one]
        if not known:
            continue
        values = []
        for column in columns:
            if len(known) == 1:
                deviation = (known[0]["deviation"] or {}).get(column.name)
                value = Quantity(_percent(known[0]["mean"].get(column.name)), _percent(deviation))
            else:
                value = Quantity.of([_percent(one["mean"].get(column.name)) for one in known])
            values.append(value)
        mark = "simulated, " if simulated else ""
        rows.append(Row(f"{mark}{line.title}", tuple(values)))
    names = [column.name for column in columns]
    for row in published["rows"]:
        given = dict(zip(published["columns"], row["values"], strict=True))
        rows.append(Row(row["method"], tuple(Quantity(given.get(name)) for name in names), PUBLISHED))
    told = ("SIMULATED: the second modality was computed from photos; our rows say nothing about real sensors.",)
    spread = "Deviations of ours are over folds, or over seeds where there are several."
    return Table(published["title"], columns, tuple(rows), (*(told if simulated else ()), published["note"], spread))


def _protocol(figures: Mapping[str, Any], protocol: str) -> Mapping[str, Any] | None:
    return next((one for one in figures.get("heterogeneous", ()) if one["protocol"] == protocol), None)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _at(rates: Mapping[str, float] | None, far: float) -> float | None:
    """A rate by its FAR target, whose key is text in JSON."""
    return next((rate for key, rate in (rates or {}).items() if float(key) == far), None)


# ------------------------------------------------------------------------------------------------------------ page
def _page(lines: Sequence[_Line], tables: Mapping[str, Table], command: str, facts: Sequence[str]) -> str:
    cards = [card for line in lines for card in line.cards]
    points = [_point(line, style) for style, line in enumerate(lines) if line.figures]
    mark = SYNTHETIC_MARK if any(card.faces.synthetic for card in cards) else ""
    drawn = (
        leakage_plot(points, (), mark, axis="worst leak, as a share of what clear photos give", front=True),
        bytes_plot(points, mark, front=True),
    )
    return render(
        "comparison.html.j2",
        synthetic_mark=mark,
        facts=list(facts),
        warnings=[
            *(f"{line.label} failed: {failure}" for line in lines for failure in line.failures),
            *(unequal(cards) if cards else ()),
        ],
        points=points,
        plots=[Markup(plot) for plot in drawn if plot],
        tables=tables,
        command=command,
        missing=wording.MISSING,
    )


def _point(line: _Line, style: int) -> Point:
    verified = [figures["verification"] for figures in line.figures]
    found = [compare([card])[0] for card in line.cards]
    leak = Quantity.of([one["leak"] for one in found]).value
    single = len(verified) == 1
    return Point(
        title=line.title,
        style=style,
        accuracy=Quantity.of([one["accuracy"] for one in verified]).value,
        accuracy_bounds=wording.bounds(verified[0], "accuracy") if single else None,
        leak=leak,
        leak_bounds=wording.bounds(found[0], "leak") if single and found else None,
        payload_bytes=line.figures[0]["cost"]["payload_bytes_raw"],
    )


__all__ = ["comparison_tables", "write_comparison_tables"]
