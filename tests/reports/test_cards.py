"""The page of a card: complete, escaped, and loading nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppfr.auditing.card import NO_JUDGE, Card, Finding
from ppfr.auditing.card import verdict as make_verdict
from ppfr.auditing.evidence import Evidence
from ppfr.reports.cards import render_card, write_card_page

MakeCard = Callable[..., Card]
MakeFinding = Callable[..., Finding]


def evidence(**changes: Any) -> Evidence:
    photos, sent, recovered = (np.full((2, 112, 112, 3), shade, np.uint8) for shade in (10, 120, 250))
    made = Evidence("Linear <inversion>", ("best", "median"), photos, sent, "pixels", recovered, (0.5, 0.4), "cosine")
    return replace(made, **changes)


def test_a_card_page_is_complete_and_loads_nothing(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card()
    page = write_card_page(card, [evidence()], tmp_path, command="ppfr audit a<b").read_text()
    assert card.verdict in page
    assert "Linear &lt;inversion&gt;" in page and "ppfr audit a&lt;b" in page and "Toy &lt;toy&gt;" in page
    assert page.count("data:image/png") == 6 and "cosine 0.50" in page and "best and median by the judge" in page
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


def test_a_card_without_a_judge_says_so(make_card: MakeCard, make_finding: MakeFinding) -> None:
    measured = make_finding("linear-inversion")
    finding = measured.model_copy(update={"status": "no judge", "result": None, "control": None, "reason": NO_JUDGE})
    verdict = make_verdict("Toy", [finding])
    card = make_card(findings=[finding], judge=None, verdict=verdict)
    page = render_card(card, [evidence(measure="SSIM")])
    assert verdict.startswith(f"Toy: {NO_JUDGE}; linear-inversion recovers images with a mean SSIM of 0.90")
    assert verdict in page and page.count(NO_JUDGE) >= 3 and "No judge: identification not measured." in page
    assert "without a judge by SSIM" in page and "SSIM 0.50" in page and "The judge is one recogniser" not in page


def test_payloads_alone_are_shown_where_nothing_was_recovered(make_card: MakeCard) -> None:
    page = render_card(make_card(), [evidence(title="", recovered=None, likeness=(), measure="")])
    assert page.count("data:image/png") == 4 and "no attack that recovers images applies" in page
