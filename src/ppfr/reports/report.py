"""One run as one self-contained HTML page, and its figures as `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from ppfr.evaluation.metrics.similarity import WINDOW, ssim
from ppfr.evaluation.metrics.statistics import as_plain
from ppfr.reports import wording
from ppfr.reports.figures import Line, Point, bytes_plot, leakage_plot, likeness_plot
from ppfr.reports.measures import GROUPS, Group
from ppfr.reports.pages import render
from ppfr.reports.pictures import check_picture
from ppfr.reports.published import published_tables
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

Images = npt.NDArray[np.uint8]

SUMMARY_KEYS = (
    "method",
    "pair_accuracy",
    "accuracy_low",
    "accuracy_high",
    "leak_rank1",
    "ceiling_rank1",
    "ssim",
    "payload_bytes",
    "client_ms",
    "server_ms",
    "train_seconds",
)
SYNTHETIC_MARK = "synthetic faces"
_SHOWN_WARNINGS = 8


@dataclass
class MethodResult:
    """What one run measured of one method.

    `row` is its line of `summary.json` (exactly `SUMMARY_KEYS`, None where not measured); `verification`, `cost` and
    `leakage` are `Verification.to_dict()`, `Cost.to_dict()` and `Leakage.to_dict()`, the last None where no attack
    applies. `originals`, `seen` and `recovered` are RGB uint8 pictures in one order; `seen_caption` says how `seen` was
    drawn (`describe_payload`).
    """

    method: str
    title: str
    paper: str
    row: dict[str, Any]
    verification: dict[str, Any]
    cost: dict[str, Any]
    leakage: dict[str, Any] | None
    originals: list[Images]
    seen: list[Images]
    recovered: list[Images] | None
    notes: list[str] = field(default_factory=list)
    seen_caption: str = ""


@dataclass
class Report:
    """A run: its methods, and what is needed to run it again.

    `data` holds `name`, `people`, `images` (those trained on), `test_people`, `test_images` and `synthetic`.
    """

    title: str
    data: dict[str, Any]
    teacher: str | None
    judge: str | None
    results: list[MethodResult]
    command: str
    seed: int
    versions: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def write_report(report: Report, path: Path | str) -> None:
    """Write `render_report(report)` to `path`, atomically."""
    atomic_write(path, render_report(report))


def write_summary(results: Sequence[MethodResult], path: Path | str) -> None:
    """Write the rows of the results as a JSON list, atomically; numbers that are not finite become null.

    Raises DataError for a row whose keys are not exactly `SUMMARY_KEYS`.
    """
    atomic_write(path, json.dumps([_row(result) for result in results], indent=2, allow_nan=False) + "\n")


def _row(result: MethodResult) -> dict[str, Any]:
    missing = [key for key in SUMMARY_KEYS if key not in result.row]
    unexpected = [key for key in result.row if key not in SUMMARY_KEYS]
    if missing or unexpected:
        raise DataError(
            f"summary row of {result.method!r} lacks {missing} and has unexpected {unexpected}; "
            f"expected {list(SUMMARY_KEYS)}"
        )
    return {key: as_plain(result.row[key]) for key in SUMMARY_KEYS}


def render_report(report: Report) -> str:
    """The report as one HTML page without scripts, which loads nothing from elsewhere.

    Every text is escaped. Raises DataError for a report without results or with a row that `write_summary` refuses, and
    ShapeError for pictures that are not RGB uint8.
    """
    if not report.results:
        raise DataError("a report needs at least one method's result; got none")
    for result in report.results:
        _row(result)
    mark = SYNTHETIC_MARK if report.data.get("synthetic") else ""
    points = [_point(result, index) for index, result in enumerate(report.results)]
    return render(
        "report.html.j2",
        report=report,
        synthetic_mark=mark,
        facts=_facts(report),
        sections=[_section(result, point) for result, point in zip(report.results, points, strict=True)],
        plots=_plots(report.results, points, mark),
        not_plotted=[point.title for point in points if point.leak is None],
        table=_table(report.results),
        basis=_basis(report.results[0]),
        threats=_threats(report.results),
        published=_published({result.method.casefold() for result in report.results}),
        warnings=report.warnings[:_SHOWN_WARNINGS],
        more_warnings=report.warnings[_SHOWN_WARNINGS:],
        missing=wording.MISSING,
    )


# ------------------------------------------------------------------------------------------ the parts of the page


def _facts(report: Report) -> list[str]:
    """What was run on what, in a few words each."""
    data = report.data
    trained = _counted(data.get("people"), data.get("images"))
    tested = _counted(data.get("test_people"), data.get("test_images"))
    count = len(report.results)
    return [
        f"{count} method{'s' if count > 1 else ''} on {data.get('name', 'unnamed data')}",
        *([f"trained on {trained}"] if trained else []),
        *([f"tested on {tested}, none of them in training"] if tested else []),
        f"teacher: {report.teacher}" if report.teacher else "no teacher: trained on labels alone",
        f"judge of leaks: {report.judge}" if report.judge else "no judge: who is identified was not measured",
    ]


def _counted(people: int | None, images: int | None) -> str:
    parts = [f"{value:,} {unit}" for value, unit in ((people, "people"), (images, "images")) if value is not None]
    return ", ".join(parts)


def _point(result: MethodResult, style: int) -> Point:
    row, leakage = result.row, result.leakage
    return Point(
        title=result.title,
        style=style,
        accuracy=wording.number(row, "pair_accuracy"),
        accuracy_bounds=wording.bounds(row, "accuracy"),
        leak=wording.number(row, "leak_rank1"),
        leak_bounds=wording.bounds(leakage, "rank1"),
        ssim=wording.number(row, "ssim"),
        ssim_bounds=wording.bounds(leakage, "ssim"),
        payload_bytes=wording.number(row, "payload_bytes"),
    )


def _plots(results: Sequence[MethodResult], points: Sequence[Point], mark: str) -> list[Markup]:
    """Accuracy against leakage, or without a judge against likeness, and against bytes; only what was measured."""
    leaks = leakage_plot(points, _lines(results), mark) or likeness_plot(points, mark)
    # made by matplotlib from numbers; the only text of others in it is escaped there
    return [Markup(plot) for plot in (leaks, bytes_plot(points, mark)) if plot]


def _lines(results: Sequence[MethodResult]) -> list[Line]:
    """Chance and ceiling, where the methods that have them agree."""
    named = [
        ("guessing", [wording.number(result.leakage, "chance") for result in results]),
        ("clear photos", [wording.number(result.row, "ceiling_rank1") for result in results]),
    ]
    lines = []
    for label, found in named:
        known = {round(value, 3) for value in found if value is not None}
        if len(known) == 1:
            lines.append(Line(known.pop(), label))
    return lines


def _section(result: MethodResult, point: Point) -> dict[str, Any]:
    """A method's card and its strip of pictures."""
    row = result.row
    return {
        "result": result,
        "point": point,
        "accuracy": wording.percent(point.accuracy),
        "accuracy_range": wording.percent_range(point.accuracy_bounds),
        "leak": wording.percent(point.leak),
        "leak_range": wording.percent_range(point.leak_bounds),
        "ssim": wording.plain(point.ssim, 2),
        "bytes": wording.scaled(point.payload_bytes, "B"),
        "recognition": wording.recognition_verdict(row),
        "leakage": wording.leakage_verdict(row, result.leakage),
        "threat": _threat(result),
        "strip": _strip(result),
    }


def _strip(result: MethodResult) -> list[dict[str, Any]]:
    """Rows of pictures with a label each; below recovered pictures their likeness to the photo."""
    rows: list[dict[str, Any]] = [
        {"label": "photo", "pictures": result.originals, "captions": []},
        {"label": "what the server sees", "pictures": result.seen, "captions": []},
    ]
    if result.recovered is not None:
        captions = [_likeness(*pair) for pair in zip(result.recovered, result.originals, strict=False)]
        rows.append({"label": "what the attack recovers", "pictures": result.recovered, "captions": captions})
    for row in rows:
        for picture in row["pictures"]:
            check_picture(picture)
    return [row for row in rows if row["pictures"]]


def _likeness(recovered: Images, original: Images) -> str:
    if recovered.shape != original.shape or min(recovered.shape[:2]) < WINDOW:
        return ""
    planes = torch.from_numpy(np.stack([recovered, original])).permute(0, 3, 1, 2).double() / 255
    return f"SSIM {float(ssim(planes[:1], planes[1:])):.2f}"


def _threat(result: MethodResult) -> str:
    """Who the attacker is, for every place where a leak is told."""
    if result.leakage is None:
        return ""
    parts = [str(result.leakage[key]) for key in ("attack", "threat") if result.leakage.get(key)]
    return ": ".join(parts)


def _threats(results: Sequence[MethodResult]) -> list[tuple[str, str]]:
    """Each attacker, with the methods it was tried on."""
    targets: dict[str, list[str]] = {}
    for result in results:
        if threat := _threat(result):
            targets.setdefault(threat, []).append(result.title)
    return [(", ".join(titles), threat) for threat, titles in targets.items()]


def _table(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """The groups of measures with a cell for each method; groups of which nothing was measured are left out."""
    groups = [_table_group(group, results) for group in GROUPS]
    return [group for group in groups if group["lines"]]


def _table_group(group: Group, results: Sequence[MethodResult]) -> dict[str, Any]:
    lines = []
    for measure in group.measures:
        cells = [measure.read(result) for result in results]
        if any(cell.value != wording.MISSING for cell in cells):
            lines.append({"measure": measure, "cells": cells})
    threats = [_threat(result) for result in results] if group.name == "Leakage" else []
    return {"name": group.name, "lines": lines, "threats": threats if any(threats) else []}


def _basis(result: MethodResult) -> str:
    """What the figures rest on: pairs, resampling, who judged leaks among whom, and what was timed."""
    told = []
    genuine, impostor = (wording.number(result.verification, key) for key in ("genuine", "impostor"))
    if genuine is not None and impostor is not None:
        told.append(f"{genuine:,.0f} same-person and {impostor:,.0f} different-person pairs")
    if result.verification.get("interval"):
        told.append(f"intervals: {result.verification['interval']}")
    if result.leakage and result.leakage.get("people"):
        judge = f", judged by {result.leakage['judge']}" if result.leakage.get("judge") else ""
        told.append(f"leaks: one query from each of {result.leakage['people']} people{judge}")
    device, threads = result.cost.get("device"), result.cost.get("threads")
    if device and threads:
        told.append(f"times: one image at a time on {device}, {threads} thread{'s' if threads > 1 else ''}")
    return "; ".join(told)


def _published(ours: set[str]) -> list[dict[str, Any]]:
    """The published tables in print, with the methods of this run (names in lower case) marked."""
    return [
        {**table, "rows": [{**row, "ours": row["method"].casefold() in ours} for row in table["rows"]]}
        for table in published_tables()
    ]
