"""The report of an experiment: one page, `summary.json`, and every table as JSON, CSV and LaTeX."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ppfr.auditing.card import NO_JUDGE, Card
from ppfr.auditing.evidence import Evidence
from ppfr.evaluation.metrics.statistics import as_plain
from ppfr.experiments.comparison import MethodOutcome
from ppfr.experiments.summary import MethodSummary, summarise, summary_rows
from ppfr.reports import wording
from ppfr.reports.cards import PAGE_FILE as CARD_PAGE
from ppfr.reports.cards import attackers, cuts, evidence_strip, write_card_page
from ppfr.reports.comparison_tables import comparison_tables, published_as_table
from ppfr.reports.figures import PlotPoint, bytes_plot, leakage_plot, likeness_plot
from ppfr.reports.pages import render
from ppfr.reports.published import published_tables
from ppfr.reports.tables import Table
from ppfr.reports.wording import SYNTHETIC_MARK, Cell
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

PAGE_FILE, SUMMARY_FILE, TABLES_FOLDER = "report.html", "summary.json", "tables"
_HEADINGS = ("privacy score", "worst leak, of clear photos'", "pair accuracy", "payload, raw", "worst attack")


def write_report(
    outcomes: Sequence[MethodOutcome],
    folder: Path | str,
    *,
    command: str = "",
    facts: Sequence[str] = (),
    skipped: Sequence[str] = (),
) -> list[Path]:
    """Write `report.html`, `summary.json`, `tables.json` and each table as CSV and LaTeX; returns their paths.

    Cards in subfolders that have no page yet get one. Each file is written atomically; the page comes last. Raises
    DataError for no outcome.
    """
    if not outcomes:
        raise DataError("nothing to report; give at least one outcome or card")
    folder = Path(folder)
    summaries = summarise(outcomes)
    rows = summary_rows(summaries)
    tables = comparison_tables(summaries)
    failed = {summary.label: summary.failures for summary in summaries if summary.failures}
    content = {
        "schema_version": 1,
        "command": command,
        "tables": {name: table.to_dict() for name, table in tables.items()},
        "failed": failed,
    }
    texts = {SUMMARY_FILE: _json(rows), f"{TABLES_FOLDER}.json": _json(content)}
    for name, table in tables.items():
        texts[f"{TABLES_FOLDER}/{name}.csv"] = table.to_csv()
        texts[f"{TABLES_FOLDER}/{name}.tex"] = table.to_latex()
    _write_card_pages(outcomes, folder)
    texts[PAGE_FILE] = _page(summaries, rows, tables, folder, command, facts, skipped)
    for file, text in texts.items():
        atomic_write(folder / file, text)
    return [folder / file for file in texts]


def _json(content: Any) -> str:
    return json.dumps(as_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _write_card_pages(outcomes: Sequence[MethodOutcome], folder: Path) -> None:
    for one in outcomes:
        ours = one.folder is not None and one.folder.is_relative_to(folder)
        if one.card is not None and one.folder is not None and ours and not (one.folder / CARD_PAGE).exists():
            run = folder / "runs" / one.folder.name
            write_card_page(one.card, one.evidence, one.folder, command=f"ppfr audit {run}")


def _page(
    summaries: Sequence[MethodSummary],
    rows: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Table],
    folder: Path,
    command: str,
    facts: Sequence[str],
    skipped: Sequence[str],
) -> str:
    """The page without scripts, which loads nothing from elsewhere; every text is escaped."""
    cards = [card for summary in summaries for card in summary.cards]
    synthetic = any(card.faces.synthetic for card in cards) or any(
        figures.get("synthetic") for summary in summaries for figures in summary.figures
    )
    mark = SYNTHETIC_MARK if synthetic else ""
    shown = [(summary, row) for summary, row in zip(summaries, rows, strict=True) if summary.measured]
    points = [_point(row, style) for style, (_, row) in enumerate(shown)]
    leaks = leakage_plot(points, mark)
    drawn = (leaks or likeness_plot(points, mark), bytes_plot(points, mark))
    pictures = [
        _pictures(summary, point) for (summary, _), point in zip(shown, points, strict=True) if _evidence(summary)
    ]
    published = [table for table in published_tables() if table.get("protocol", "published") not in tables]
    return render(
        "report.html.j2",
        synthetic_mark=mark,
        shows_faces=bool(pictures),
        facts=[*(facts or _common_facts(cards))],
        warnings=[
            *(f"{summary.label} failed: {failure}" for summary in summaries for failure in summary.failures),
            *unequal(cards),
            *([f"{NO_JUDGE[0].upper()}{NO_JUDGE[1:]}."] if any(card.judge is None for card in cards) else []),
            *(f"left out: {line}" for line in skipped),
        ],
        headings=_HEADINGS,
        methods=[
            {"point": point, "row": row, "cells": _cells(row, summary), "links": _links(summary, folder)}
            for point, (summary, row) in zip(points, shown, strict=True)
        ],
        # drawn by matplotlib from numbers; text from elsewhere is escaped there
        plots=[Markup(plot) for plot in drawn if plot],
        likeness_instead=bool(drawn[0]) and not leaks,
        unplotted=[point.title for point in points if point.accuracy is None or point.leak is None],
        pictures=pictures,
        tables=tables,
        published=[published_as_table(table, {point.title for point in points}) for table in published],
        attackers=attackers([finding for summary in summaries for finding in summary.worst]),
        judges=sorted({card.judge.name for card in cards if card.judge is not None}),
        cuts=cuts(cards),
        command=command,
        versions=cards[0].versions if cards else {},
    )


def _point(row: Mapping[str, Any], style: int) -> PlotPoint:
    return PlotPoint(
        title=row["title"],
        style=style,
        accuracy=row["pair_accuracy"],
        accuracy_bounds=wording.bounds(row, "accuracy"),
        leak=row["leak"],
        leak_bounds=wording.bounds(row, "leak"),
        ssim=row["ssim"],
        ssim_bounds=wording.bounds(row, "ssim"),
        payload_bytes=row["payload_bytes"],
    )


def _cells(row: Mapping[str, Any], summary: MethodSummary) -> list[Cell]:
    deviation = row["accuracy_deviation"]
    accuracy = wording.percent(row["pair_accuracy"])
    return [
        Cell(wording.plain(row["privacy"], 2)),
        Cell(wording.percent(row["leak"]), wording.percent_range(wording.bounds(row, "leak")))
        if row["leak"] is not None or row["ssim"] is None
        else Cell(wording.MISSING, f"SSIM {row['ssim']:.2f}"),
        Cell(
            accuracy if deviation is None else f"{accuracy} ± {100 * deviation:.1f}",
            wording.percent_range(wording.bounds(row, "accuracy")),
        ),
        Cell(wording.scaled(row["payload_bytes"], "B")),
        _worst(summary),
    ]


def _worst(summary: MethodSummary) -> Cell:
    """The attack behind the leak, and its threat model."""
    if not summary.worst:
        return Cell(wording.MISSING, NO_JUDGE if any(card.judge is None for card in summary.cards) else "")
    threat = summary.worst[0].threat
    return Cell(summary.worst[0].title, "" if threat is None else threat.text)


def _links(summary: MethodSummary, folder: Path) -> list[tuple[int, str]]:
    """Seed and relative address of each card's page."""
    return [
        (one.seed, Path(os.path.relpath(one.folder / CARD_PAGE, folder)).as_posix())
        for one in summary.outcomes
        if one.folder is not None and (one.folder / CARD_PAGE).exists()
    ]


def _evidence(summary: MethodSummary) -> Evidence | None:
    """The pictures of the first audited seed: of its worst attack if it recovers images, else of the most similar."""
    found = next((one for one in summary.outcomes if one.evidence), None)
    if found is None:
        return None
    worst = {finding.title for finding in summary.worst}
    return max(found.evidence, key=lambda one: (one.title in worst, max(one.likeness, default=0.0)))


def _pictures(summary: MethodSummary, point: PlotPoint) -> dict[str, Any]:
    evidence = _evidence(summary)
    assert evidence is not None
    drawn = evidence_strip(evidence)
    threats = [
        one.threat.text for card in summary.cards for one in card.findings if one.title == evidence.title and one.threat
    ]
    if threats:
        drawn["caption"] += f" The attacker {threats[0]}."
    return {"point": point, "paper": summary.cards[0].method.paper if summary.cards else "", **drawn}


def _common_facts(cards: Sequence[Card]) -> list[str]:
    """The terms of audits that were not made here."""
    if not cards:
        return []
    first, count = cards[0], len(cards)
    return [
        f"{count} card{'s' if count > 1 else ''} on {first.faces.name}, {first.faces.people} people attacked",
        f"judge: {first.judge.describe() if first.judge else 'none'}",
        f"profile {first.profile}, seed {first.seed}",
    ]


def unequal(cards: Sequence[Card]) -> list[str]:
    """Settings in which audits differ that should be equal: judge, faces, profile and attacker's recogniser."""
    settings = {
        "judges": {"none" if card.judge is None else card.judge.name for card in cards},
        "faces": {f"{card.faces.name}, {card.faces.people} people" for card in cards},
        "profiles": {card.profile for card in cards},
        "attacker's recognisers": {"none" if card.recogniser is None else card.recogniser.name for card in cards},
    }
    return [f"different {what}: {'; '.join(sorted(found))}" for what, found in settings.items() if len(found) > 1]


__all__ = ["PAGE_FILE", "SUMMARY_FILE", "unequal", "write_report"]
