"""Audits as pages: one card, or several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from torch import Tensor

from ppfr.auditing.audit import Audit, Evidence
from ppfr.auditing.card import CONTROL_SHARE, Beside, Card, Figure, Finding, Measured
from ppfr.reports import wording
from ppfr.reports.figures import Bar, Point, bytes_plot, leak_bars, leakage_plot
from ppfr.reports.measures import Cell
from ppfr.reports.pages import render
from ppfr.reports.pictures import describe_payload, payload_picture
from ppfr.reports.report import SYNTHETIC_MARK
from ppfr.reports.wording import Bounds
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

Images = npt.NDArray[np.uint8]

PAGE_FILE, COMPARISON_FILE = "card.html", "comparison.json"


@dataclass(frozen=True)
class Recovered:
    """One recovery to show: its label, photo, payload and result as RGB uint8, and how alike the judge finds them."""

    label: str
    photo: Images
    sent: Images
    result: Images
    likeness: float


@dataclass(frozen=True)
class Exhibit:
    """What one attack made of some payloads."""

    title: str
    shown: tuple[Recovered, ...]


def write_audit(audit: Audit, folder: Path | str, *, command: str = "") -> list[Path]:
    """Write `card.json` and `card.html` into a folder, atomically; returns their paths.

    The page shows faces: raises DataError for a folder inside a git work tree, unless the faces are synthetic.
    """
    if not audit.card.faces.synthetic:
        refuse_repository(Path(folder))
    data = audit.card.save(folder)
    caption = describe_payload(audit.evidence[0].sent) if audit.evidence else ""
    shown = [exhibit(evidence) for evidence in audit.evidence]
    return [data, write_card_page(audit.card, shown, folder, command=command, seen_caption=caption)]


def refuse_repository(folder: Path) -> None:
    """Raise DataError for a folder inside a git work tree, where faces would be committed by accident."""
    place = folder.absolute()
    for above in (place, *place.parents):
        if (above / ".git").exists():
            raise DataError(
                f"{folder} lies inside the git repository {above}, and the page shows faces, which are personal data; "
                "choose a folder outside of any repository"
            )


def exhibit(evidence: Evidence) -> Exhibit:
    """Pictures of what an attack made of some payloads."""
    photos, recovered = (_pixels(images) for images in (evidence.photos, evidence.recovered))
    sent = [payload_picture(evidence.sent, row) for row in range(len(evidence.sent))]
    shown = zip(evidence.labels, photos, sent, recovered, evidence.likeness, strict=True)
    return Exhibit(evidence.title, tuple(Recovered(*one) for one in shown))


def _pixels(images: Tensor) -> list[Images]:
    return list((images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())


def write_card_page(
    card: Card, exhibits: Sequence[Exhibit], folder: Path | str, *, command: str = "", seen_caption: str = ""
) -> Path:
    """Write `card.html` into a folder, atomically; returns its path."""
    path = Path(folder) / PAGE_FILE
    atomic_write(path, render_card(card, exhibits, command=command, seen_caption=seen_caption))
    return path


def render_card(card: Card, exhibits: Sequence[Exhibit] = (), *, command: str = "", seen_caption: str = "") -> str:
    """A card as one HTML page without scripts, which loads nothing from elsewhere; every text is escaped."""
    ran = [finding for finding in card.findings if finding.result is not None]
    mark = SYNTHETIC_MARK if card.faces.synthetic else ""
    return render(
        "card.html.j2",
        card=card,
        synthetic_mark=mark,
        score=wording.plain(card.privacy, 2),
        position=round(100 * (card.privacy or 0.0), 1),
        facts=_facts(card),
        has_faces=bool(exhibits),
        short=_short(card),
        bars=Markup(leak_bars([_bar(finding) for finding in ran], mark)),
        lines=[_line(finding) for finding in card.findings],
        exhibits=[_exhibit(exhibit) for exhibit in exhibits],
        seen_caption=seen_caption,
        attackers=_attackers(ran),
        control_share=wording.percent(CONTROL_SHARE, 0),
        command=command,
        duration=f"Took {wording.duration(card.times.seconds)}, started {card.times.started}.",
        missing=wording.MISSING,
    )


# ------------------------------------------------------------------------------------------------------ one card


def _facts(card: Card) -> list[str]:
    faces = card.faces
    attacked = f"one query from each of {faces.people} people, searched among {faces.photos} other photos of each"
    public = f"the attacker has {faces.public_faces} faces of {faces.public_people} other people"
    taught = f"teacher: {card.teacher.name}" if card.teacher else "teacher: none on record"
    own = f"attacker's recogniser: {card.recogniser.name}" if card.recogniser else "the attacker has no recogniser"
    return [
        card.method.paper,
        f"{attacked}, on {faces.name}; {public}",
        f"judge: {card.judge.name} ({card.judge.preprocessing})",
        f"{own}; {taught}",
        f"profile {card.profile}, seed {card.seed}",
        *(f"payload with {name} {value}" for name, value in card.method.settings.items() if value is not None),
    ]


def _short(card: Card) -> list[tuple[str, str, str]]:
    """What a reader wants first: name, value and note of each."""
    worst = next((finding for finding in card.findings if finding.attack == card.worst), None)
    told = "no attack was reliable"
    if worst is not None and worst.result is not None:
        told = f"worst case: {worst.title.lower()}, {wording.percent(worst.result.leak.value)} of people found"
    reliable = sum(finding.status == "reliable" for finding in card.findings)
    ran = sum(finding.result is not None for finding in card.findings)
    accuracy = card.accuracy
    known = f"interval {wording.percent_range(_bounds(accuracy))}" if accuracy else "not measured"
    return [
        ("privacy score", wording.plain(card.privacy, 2), told),
        ("pairs judged correctly by the method", wording.percent(accuracy.value if accuracy else None), known),
        ("payload of one image, raw", wording.scaled(card.method.payload_bytes, "B"), card.method.payload),
        ("attacks that proved themselves", f"{reliable} of {ran}", f"{len(card.findings) - ran} do not apply"),
    ]


def _bounds(figure: Figure | None) -> Bounds | None:
    return None if figure is None else Bounds(figure.low, figure.high)


def _bar(finding: Finding) -> Bar:
    result = finding.result
    assert result is not None
    return Bar(
        title=finding.title,
        share=result.leak.value,
        bounds=_bounds(result.leak),
        chance=result.chance,
        ceiling=result.ceiling.value,
        faint=finding.status != "reliable",
    )


def _line(finding: Finding) -> dict[str, Any]:
    """A row of the table of attacks."""
    result, control = finding.result, finding.control
    if result is None:
        cells = [Cell(wording.MISSING)] * 5
    else:
        cells = [
            _share(result.leak),
            _share(result.ceiling),
            Cell(wording.percent(result.chance)),
            Cell(wording.plain(result.privacy, 2)),
            _control_cell(control.result, control.target) if control else Cell(wording.MISSING),
        ]
    further = [f"{name} {_further(name, figure)}" for name, figure in finding.further.items()]
    return {
        "finding": finding,
        "cells": cells,
        "measure": "" if result is None else f"{result.measure}, {result.people} people{_counts(finding)}",
        "further": "; ".join(further),
    }


def _counts(finding: Finding) -> str:
    return "" if finding.finds_people else "; no identity, so not part of the score"


def _share(figure: Figure) -> Cell:
    return Cell(wording.percent(figure.value), wording.percent_range(_bounds(figure)))


def _control_cell(result: Measured, target: str) -> Cell:
    return Cell(wording.percent(result.leak.value), target)


def _further(name: str, figure: Beside) -> str:
    """A further measure in print, beside what clear photos give."""

    def told(value: float) -> str:
        if name == "PSNR":
            return wording.plain(value, 1, "dB")
        return wording.plain(value, 2) if name == "SSIM" else wording.percent(value)

    if figure.ceiling is None or name == "SSIM":
        return told(figure.value)
    return f"{told(figure.value)} (clear photos {told(figure.ceiling)})"


def _exhibit(exhibit: Exhibit) -> dict[str, Any]:
    rows = [
        {
            "label": shown.label,
            "pictures": (shown.photo, shown.sent, shown.result),
            "captions": ("photo", "what is sent", f"recovered, cosine {shown.likeness:.2f}"),
        }
        for shown in exhibit.shown
    ]
    return {"title": exhibit.title, "rows": rows}


def _attackers(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Each threat model in words, with the attacks that run under it."""
    told: dict[str, list[str]] = {}
    for finding in findings:
        if finding.threat is not None:
            told.setdefault(wording.attacker_words(finding.threat), []).append(finding.title)
    return [(", ".join(titles), words) for words, titles in told.items()]


# ------------------------------------------------------------------------------------------------- side by side

_HEADINGS = ("privacy score", "worst leak, of clear photos'", "pair accuracy", "payload, raw", "worst attack")


def write_comparison(cards: Sequence[Card], folder: Path | str) -> list[Path]:
    """Write `comparison.html` and `comparison.json` into a folder, atomically; returns their paths."""
    folder = Path(folder)
    page, data = folder / "comparison.html", folder / COMPARISON_FILE
    atomic_write(data, json.dumps({"schema_version": 1, "methods": compare(cards)}, indent=2, allow_nan=False) + "\n")
    atomic_write(page, render_comparison(cards))
    return [page, data]


def compare(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """One row a card: accuracy, worst leak as a share of what clear photos give, bytes, and whether it is on the front.

    A method is on the Pareto front when no other one is as good in all three and better in one. Methods whose accuracy
    or leak is not known are not compared. Raises DataError for no card.
    """
    if not cards:
        raise DataError("nothing to compare; give at least one card")
    rows = [_comparison_row(card) for card in cards]
    for row in rows:
        known = row["accuracy"] is not None and row["leak"] is not None
        row["pareto"] = known and not any(_dominates(other, row) for other in rows)
    return rows


def _comparison_row(card: Card) -> dict[str, Any]:
    worst = next((finding.result for finding in card.findings if finding.attack == card.worst), None)
    leak = interval = None
    if worst is not None:
        room = worst.ceiling.value - worst.chance
        leak = 1 - float(card.privacy or 0.0)
        interval = [min(1.0, max(0.0, (edge - worst.chance) / room)) for edge in (worst.leak.low, worst.leak.high)]
    accuracy = card.accuracy
    return {
        "method": card.method.name,
        "title": card.method.title,
        "accuracy": None if accuracy is None else accuracy.value,
        "accuracy_interval": None if accuracy is None else [accuracy.low, accuracy.high],
        "leak": leak,
        "leak_interval": interval,
        "privacy": card.privacy,
        "worst": card.worst,
        "payload_bytes": card.method.payload_bytes,
        "verdict": card.verdict,
    }


def _dominates(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether `one` is as good as `two` in accuracy, leak and bytes, and better in one of them."""
    if one["accuracy"] is None or one["leak"] is None:
        return False
    first, second = ((row["accuracy"], -row["leak"], -row["payload_bytes"]) for row in (one, two))
    return first != second and all(a >= b for a, b in zip(first, second, strict=True))


def render_comparison(cards: Sequence[Card]) -> str:
    """Several cards as one HTML page without scripts, which loads nothing from elsewhere; every text is escaped."""
    rows = compare(cards)
    points = [_comparison_point(row, index) for index, row in enumerate(rows)]
    mark = SYNTHETIC_MARK if any(card.faces.synthetic for card in cards) else ""
    drawn = (
        leakage_plot(points, (), mark, axis="worst leak, as a share of what clear photos give", front=True),
        bytes_plot(points, mark, front=True),
    )
    return render(
        "compare.html.j2",
        synthetic_mark=mark,
        facts=_common_facts(cards),
        warnings=unequal(cards),
        plots=[Markup(plot) for plot in drawn if plot],
        unplotted=[point.title for point in points if point.accuracy is None or point.leak is None],
        headings=_HEADINGS,
        lines=[
            {"point": point, "row": row, "cells": _comparison_cells(row, card)}
            for point, row, card in zip(points, rows, cards, strict=True)
        ],
        missing=wording.MISSING,
    )


def _comparison_point(row: dict[str, Any], style: int) -> Point:
    return Point(
        title=row["title"],
        style=style,
        accuracy=row["accuracy"],
        accuracy_bounds=wording.bounds(row, "accuracy"),
        leak=row["leak"],
        leak_bounds=wording.bounds(row, "leak"),
        payload_bytes=row["payload_bytes"],
    )


def _comparison_cells(row: dict[str, Any], card: Card) -> list[Cell]:
    worst = next((finding for finding in card.findings if finding.attack == card.worst), None)
    return [
        Cell(wording.plain(row["privacy"], 2)),
        Cell(wording.percent(row["leak"]), wording.percent_range(wording.bounds(row, "leak"))),
        Cell(wording.percent(row["accuracy"]), wording.percent_range(wording.bounds(row, "accuracy"))),
        Cell(wording.scaled(row["payload_bytes"], "B")),
        Cell(wording.MISSING) if worst is None else Cell(worst.title),
    ]


def _common_facts(cards: Sequence[Card]) -> list[str]:
    first, count = cards[0], len(cards)
    return [
        f"{count} method{'s' if count > 1 else ''} on {first.faces.name}, {first.faces.people} people attacked",
        f"judge: {first.judge.name}",
        f"profile {first.profile}, seed {first.seed}",
    ]


def unequal(cards: Sequence[Card]) -> list[str]:
    """In what the audits differ though they should not, in words: judge, faces, profile, seed or schema."""
    settings = {
        "judges": {card.judge.name for card in cards},
        "faces": {f"{card.faces.name}, {card.faces.people} people" for card in cards},
        "profiles": {card.profile for card in cards},
        "attacker's recognisers": {"none" if card.recogniser is None else card.recogniser.name for card in cards},
    }
    return [f"different {what}: {'; '.join(sorted(found))}" for what, found in settings.items() if len(found) > 1]


__all__ = [
    "PAGE_FILE",
    "Exhibit",
    "Recovered",
    "compare",
    "exhibit",
    "refuse_repository",
    "render_card",
    "render_comparison",
    "unequal",
    "write_audit",
    "write_card_page",
    "write_comparison",
]
