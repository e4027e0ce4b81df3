"""The page of an audit's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ppfr.auditing.card import CONTROL_SHARE, NO_JUDGE, Card, Estimate, Finding, FurtherEstimate
from ppfr.auditing.evidence import Audit, Evidence
from ppfr.reports import wording
from ppfr.reports.figures import Bar, leak_bars
from ppfr.reports.pages import render
from ppfr.reports.wording import SYNTHETIC_MARK, Bounds, Cell
from ppfr.util.files import atomic_write

PAGE_FILE = "card.html"


def write_audit(audit: Audit, folder: Path | str, *, command: str = "") -> list[Path]:
    """Write `card.json`, `evidence.npz` and `card.html` into a folder; returns the paths of card and page."""
    data = audit.save(folder)
    return [data, write_card_page(audit.card, audit.evidence, folder, command=command)]


def write_card_page(card: Card, evidence: Sequence[Evidence], folder: Path | str, *, command: str = "") -> Path:
    """Write `card.html` into a folder, atomically; returns its path."""
    path = Path(folder) / PAGE_FILE
    atomic_write(path, render_card(card, evidence, command=command))
    return path


def render_card(card: Card, evidence: Sequence[Evidence] = (), *, command: str = "") -> str:
    """A card as one HTML page without scripts, which loads nothing from elsewhere; every text is escaped."""
    ran = [finding for finding in card.findings if finding.threat is not None]
    mark = SYNTHETIC_MARK if card.faces.synthetic else ""
    return render(
        "card.html.j2",
        card=card,
        synthetic_mark=mark,
        shows_faces=bool(evidence),
        warnings=[] if card.judge is not None else [f"{NO_JUDGE[0].upper()}{NO_JUDGE[1:]}."],
        score=wording.plain(card.privacy, 2),
        position=round(100 * (card.privacy or 0.0), 1),
        facts=_facts(card),
        short=_short(card),
        bars=Markup(leak_bars([_bar(finding) for finding in ran if finding.result is not None], mark)),
        lines=[_line(finding) for finding in card.findings],
        exhibits=[{"title": one.title or "No recovery", **evidence_strip(one)} for one in evidence],
        attackers=attackers(ran),
        judges=[] if card.judge is None else [card.judge.name],
        cuts=cuts([card]),
        control_share=wording.percent(CONTROL_SHARE, 0),
        command=command,
        versions={"seed": card.seed, **card.versions},
        duration=f"Took {wording.duration(card.times.seconds)}, started {card.times.started}.",
    )


def _facts(card: Card) -> list[str]:
    faces = card.faces
    attacked = f"one query from each of {faces.people} people, searched among {faces.photos} other photos of each"
    public = f"the attacker has {faces.public_faces} faces of {faces.public_people} other people"
    taught = f"teacher: {card.teacher.name}" if card.teacher else "teacher: none on record"
    own = f"attacker's recogniser: {card.recogniser.name}" if card.recogniser else "the attacker has no recogniser"
    return [
        card.method.paper,
        f"{attacked}, on {faces.name}; {public}",
        f"judge: {card.judge.describe()}" if card.judge else NO_JUDGE,
        f"{own}; {taught}",
        f"profile {card.profile}, seed {card.seed}",
        *(f"payload with {name} {value}" for name, value in card.method.settings.items() if value is not None),
    ]


def _short(card: Card) -> list[tuple[str, str, str]]:
    """What a reader wants first: name, value and note of each."""
    worst = next((finding for finding in card.findings if finding.attack == card.worst), None)
    leak = NO_JUDGE if card.judge is None else "no attack was reliable"
    if worst is not None and worst.result is not None:
        leak = f"worst case: {worst.title.lower()}, {wording.percent(worst.result.leak.value)} of people found"
    count = Counter(finding.status for finding in card.findings)
    ran = len(card.findings) - count["not applicable"]
    reliable = (
        f"{count['unreliable']} unreliable, {count['no judge']} without a judge, {count['not applicable']} do not apply"
    )
    accuracy = card.accuracy
    known = f"interval {wording.percent_range(_bounds(accuracy))}" if accuracy else "not measured"
    return [
        ("privacy score", wording.plain(card.privacy, 2), leak),
        ("pairs judged correctly by the method", wording.percent(accuracy.value if accuracy else None), known),
        ("payload of one image, raw", wording.scaled(card.method.payload_bytes, "B"), card.method.payload),
        ("attacks that are reliable", f"{count['reliable']} of {ran}", reliable),
    ]


def _bounds(figure: Estimate | None) -> Bounds | None:
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
            Cell(wording.percent(control.result.leak.value), control.target) if control else Cell(wording.MISSING),
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


def _share(figure: Estimate) -> Cell:
    return Cell(wording.percent(figure.value), wording.percent_range(_bounds(figure)))


def _further(name: str, figure: FurtherEstimate) -> str:
    """A further measure in print, beside what clear photos give."""

    def text(value: float) -> str:
        if name == "PSNR":
            return wording.plain(value, 1, "dB")
        return wording.plain(value, 2) if name == "SSIM" else wording.percent(value)

    if figure.ceiling is None or name == "SSIM":
        return text(figure.value)
    return f"{text(figure.value)} (clear photos {text(figure.ceiling)})"


def evidence_strip(evidence: Evidence) -> dict[str, Any]:
    """Rows of pictures with labels, photo above payload above recovery, and their caption."""
    rows: list[dict[str, Any]] = [
        {"label": "photo", "pictures": evidence.photos, "captions": evidence.labels},
        {"label": "what the server sees", "pictures": evidence.sent, "captions": ()},
    ]
    caption = f"What the server sees: {evidence.caption}."
    if evidence.recovered is None:
        caption += " Nothing was recovered: no attack that recovers images applies."
    else:
        captions = [f"{evidence.measure} {value:.2f}" for value in evidence.likeness]
        rows.append({"label": "what the attack recovers", "pictures": evidence.recovered, "captions": captions})
        judged = "by the judge" if evidence.measure == "cosine" else "without a judge by SSIM"
        caption += f" Recovered by {evidence.title.lower()}; best and median {judged}."
    return {"strip": rows, "caption": caption}


def cuts(cards: Sequence[Card]) -> dict[str, list[str]]:
    """What each profile leaves out of the full audit."""
    return {card.profile: card.cut for card in cards}


def attackers(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Each threat model in words, with the titles of the attacks that run under it."""
    titles: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.threat is not None:
            titles.setdefault(wording.threat_words(finding.threat), {})[finding.title] = None
    return [(", ".join(names), words) for words, names in titles.items()]


__all__ = [
    "PAGE_FILE",
    "attackers",
    "cuts",
    "evidence_strip",
    "render_card",
    "write_audit",
    "write_card_page",
]
