"""The report: complete, closed to the outside, and safe with any text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppfr.auditing.card import NO_JUDGE, Card, Finding, verdict
from ppfr.auditing.evidence import Evidence
from ppfr.experiments.comparison import MethodOutcome
from ppfr.reports.published import published_tables
from ppfr.reports.report import unequal, write_report
from ppfr.util.errors import DataError

THREAT = "sees one payload; knows ..."
VOID = {"meta", "img", "br", "hr", "link", "input"}
MakeCard = Callable[..., Card]
MakeFinding = Callable[..., Finding]


def evidence(title: str = "linear-inversion", **changes: Any) -> Evidence:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 112, 112, 3), np.uint8)
    values: dict[str, Any] = {
        "labels": ("best", "median"),
        "photos": pictures[0],
        "sent": pictures[1],
        "caption": "27 channels of 112×112",
        "recovered": pictures[2],
        "likeness": (0.9, 0.5),
        "measure": "cosine",
    }
    return Evidence(title, **{**values, **changes})


def figures(label: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    values = {
        "label": label,
        "method": label,
        "title": label.title(),
        "paper": "Mi et al., ICCV 2023",
        "protects": True,
        "synthetic": False,
        "seed": seed,
        "set": {},
        "remarks": ["a remark"],
        "train_seconds": 341.0,
        "verification": {
            "accuracy": 0.915,
            "accuracy_low": 0.901,
            "accuracy_high": 0.928,
            "tar": {"0.1": 0.93, "0.01": 0.71, "0.001": 0.4},
            "tar_interval": {"0.1": [0.9, 0.95], "0.01": [0.66, 0.75], "0.001": [0.3, 0.5]},
            "unresolved": [0.001],
            "auc": 0.97,
            "auc_interval": [0.96, 0.98],
            "eer": 0.085,
            "eer_interval": [0.07, 0.1],
            "genuine": 3000,
            "impostor": 3000,
            "interval": "95 % percentile bootstrap over 59 people",
        },
        "cost": {
            "client_parameters": 0,
            "server_parameters": 1204480,
            "client_macs": 2_100_000,
            "server_macs": 227_000_000,
            "client_ms": 1.83,
            "server_ms": 9.9,
            "payload_bytes_raw": 1354752,
            "payload_bytes_sent": 1165000,
            "device": "cpu",
            "threads": 2,
        },
    }
    return {**values, **changes}


@pytest.fixture
def outcomes(make_card: MakeCard) -> list[MethodOutcome]:
    return [
        MethodOutcome(name, 0, figures(name), make_card(name=name), [evidence()])
        for name in ("partialface", "duetface")
    ]


def write(outcomes: Sequence[MethodOutcome], folder: Path, **options: Any) -> str:
    write_report(outcomes, folder, **options)
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """A parsed page: its elements, its visible text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        self.text = " ".join(self.text.replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += f" {data} "

    def attributes(self, *names: str) -> list[str]:
        return [value for _, found in self.elements for name, value in found.items() if name in names and value]


def blocks(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}\b.*?</{tag}>", page, flags=re.DOTALL)


class TestPage:
    def test_it_loads_nothing_and_runs_nothing(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        text = write(outcomes, tmp_path)
        page = Page(text)
        addresses = page.attributes("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        assert addresses
        assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
        assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
        assert not [name for _, found in page.elements for name in found if name.startswith("on")]
        style = "".join(blocks(text, "style"))
        assert "url(" not in style
        assert "@import" not in style
        assert "http" not in re.sub(r"base64,[^\"]*", "", text)

    def test_ids_are_unique_and_pictures_are_described(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        page = Page(write(outcomes, tmp_path))
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        images = [found for tag, found in page.elements if tag == "img"]
        assert len(images) == 2 * 6
        assert all(found["alt"] for found in images)
        assert images[0]["alt"] == "photo, face 1"

    def test_every_figure_is_there(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        facts = ["data: faces", "teacher: teacher.ckpt"]
        text = Page(
            write(outcomes, tmp_path, command="ppfr quickstart", facts=facts, skipped=["a.jpg: cut short"])
        ).text
        for expected in (
            *facts,
            "Partialface",
            "91.5 % 90.1–92.8 %",
            "91.50",
            "93.0 90.0–95.0",
            "Too few pairs to resolve FAR 0.1 %",
            "0.970 0.960–0.980",
            "8.50 7.00–10.00",
            "100.0 95.0–100.0",
            "0.90 0.80–0.95",
            "1.35 MB",
            "1,354.8",
            "1,165.0",
            "341",
            "3,000 same-person and 3,000 different-person pairs",
            "95 % percentile bootstrap over 59 people",
            "One query from each of 40 people",
            "cpu, 2 threads",
            "a remark",
            "27 channels of 112×112",
            "cosine 0.90",
            "ppfr quickstart",
            "ppfr 0.1.0",
            "left out: a.jpg: cut short",
            "One seed: no deviation is known",
            "The judge is one recogniser , judge.onnx",
            "Profile fast is not the full audit: 40 people instead of all",
            "a leak that was not found is not a proof",
            "Low likeness is not privacy",
        ):
            assert expected in text, expected

    def test_every_leak_comes_with_its_attacker(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        text = write(outcomes, tmp_path)
        first, *_ = blocks(text, "table")
        assert first.count(THREAT) == 2
        assert all(THREAT in block for block in blocks(text, "article"))
        assert "gets hold of one payload" in text

    def test_synthetic_faces_are_marked_everywhere(self, make_card: MakeCard, tmp_path: Path) -> None:
        faces = make_card().faces.model_copy(update={"synthetic": True})
        text = write([MethodOutcome("one", 0, figures("one"), make_card(faces=faces), [evidence()])], tmp_path)
        mark = "synthetic faces"
        assert "Synthetic faces." in text and "This page shows faces" not in text
        assert all(mark in block for tag in ("svg", "figure") for block in blocks(text, tag))
        unmarked = [heading for heading in blocks(text, "h2") if mark not in heading]
        assert [Page(heading).text.split()[0] for heading in unmarked] == ["Published:", "How", "Reproduce"]
        unaudited = write([MethodOutcome("one", 0, figures("one", synthetic=True))], tmp_path)
        assert "Synthetic faces." in unaudited

    def test_real_faces_are_not_called_synthetic(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        text = Page(write(outcomes, tmp_path)).text
        assert "synthetic" not in text.lower() and "This page shows faces" in text

    def test_published_results_are_complete_and_apart(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        text = write(outcomes, tmp_path)
        for table in published_tables():
            assert table["title"] in text
        assert "not comparable with ours number by number" in text
        assert "MS1Mv2-scale training" in text and "99.77" in text and text.count("Other published results") == 1

    def test_it_is_reproducible(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        assert write(outcomes, tmp_path / "a") == write(outcomes, tmp_path / "b")

    def test_many_warnings_are_folded_but_kept(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        skipped = [f"{index}.jpg: empty file" for index in range(30)]
        text = write(outcomes, tmp_path, skipped=skipped)
        assert "22 more" in text
        assert all(f"<li>left out: {line}</li>" in text for line in skipped)

    def test_cards_get_pages_and_links(self, make_card: MakeCard, tmp_path: Path) -> None:
        folder = tmp_path / "cards" / "one-seed0"
        make_card().save(folder)
        outcome = MethodOutcome("one", 0, figures("one"), make_card(), [evidence()], folder)
        assert 'href="cards/one-seed0/card.html"' in write([outcome], tmp_path)
        assert make_card().verdict in (folder / "card.html").read_text()
        assert 'href="../cards/one-seed0/card.html"' in write([outcome], tmp_path / "elsewhere")


class TestNotMeasured:
    def test_a_failure_alone(self, tmp_path: Path) -> None:
        text = Page(write([MethodOutcome("one", 0, failed="out of memory")], tmp_path)).text
        assert "one failed: seed 0: out of memory" in text
        assert not re.search(r"\b(None|nan|inf|NaN)\b", text)
        assert json.loads((tmp_path / "tables.json").read_text())["tables"]["accuracy"]["rows"] == []

    def test_no_judge(self, make_card: MakeCard, make_finding: MakeFinding, tmp_path: Path) -> None:
        finding = make_finding("linear-inversion").model_copy(
            update={"status": "no judge", "result": None, "control": None, "reason": NO_JUDGE}
        )
        card = make_card(findings=[finding], judge=None, verdict=verdict("Toy", [finding]))
        outcome = MethodOutcome("one", 0, figures("one"), card, [evidence(measure="SSIM")])
        text = Page(write([outcome], tmp_path)).text
        assert "Accuracy against likeness" in text and "Accuracy against leakage" not in text
        assert "likeness stands in for it, which is weaker evidence" in text
        assert text.count(NO_JUDGE) >= 3 and "No judge: identification not measured." in text
        assert "0.90 0.80–0.95" in text and "— SSIM 0.90" in text
        (row,) = json.loads((tmp_path / "summary.json").read_text())
        assert row["leak"] is row["leak_rank1"] is row["worst"] is None and row["ssim"] == 0.9
        assert not re.search(r"\b(None|nan)\b", text)

    def test_one_of_two_methods(self, outcomes: list[MethodOutcome], tmp_path: Path) -> None:
        text = Page(write([*outcomes, MethodOutcome("new", 0, figures("new"))], tmp_path)).text
        assert "Not drawn, because accuracy or leak is not known: New." in text
        assert "—" in text

    def test_cards_alone(self, make_card: MakeCard, make_finding: MakeFinding, tmp_path: Path) -> None:
        cards = [
            make_card(name="one", findings=[make_finding("linkage", leak=0.3)], accuracy=0.9),
            make_card(name="two", profile="full", accuracy=0.99),
        ]
        text = write([MethodOutcome(card.method.name, 0, card=card) for card in cards], tmp_path)
        assert "on the front" in text and "different profiles: fast; full" in text
        assert text.count('class="plot"') == 2 and "2 cards on toy, 40 people attacked" in text
        assert [row["method"] for row in json.loads((tmp_path / "summary.json").read_text())] == ["one", "two"]
        assert not (tmp_path / "tables" / "accuracy.csv").exists() and (tmp_path / "tables" / "leak.csv").exists()
        assert unequal(cards[:1]) == []


def test_any_text_is_escaped(make_card: MakeCard, tmp_path: Path) -> None:
    bad = "</title></style></svg><script>alert('x')</script><img src=\"http://evil\" onerror=x> & {{ 7 * 7 }}"
    card = make_card(name=bad, verdict=bad)
    card = card.model_copy(update={"method": card.method.model_copy(update={"paper": bad, "title": bad})})
    drawn = evidence(bad, caption=bad, labels=(bad, bad))
    outcome = MethodOutcome("x", 0, figures("x", title=bad, remarks=[bad]), card, [drawn], failed="")
    failed = MethodOutcome("y", 0, failed=bad)
    text = write([outcome, failed], tmp_path, command=bad, facts=[bad], skipped=[bad])
    page = Page(text)
    assert "<script" not in text
    assert "http://evil" not in "".join(page.attributes("src", "href"))
    assert not page.attributes("onerror")
    assert page.text.count(bad) >= 12


def test_all_files_are_written(make_card: MakeCard, tmp_path: Path) -> None:
    protocol = {
        "protocol": "lamp-hq",
        "title": "LAMP-HQ",
        "simulated": True,
        "mean": {"Rank-1": 0.6, "VR@FAR=1%": 0.5},
        "deviation": None,
    }
    outcomes = [
        MethodOutcome("one", 0, figures("one", heterogeneous=[protocol]), make_card(name="one")),
        MethodOutcome("two", 0, failed="the loss is nan"),
    ]
    written = write_report(outcomes, tmp_path, command="ppfr compare")
    names = {"accuracy", "leak", "cost", "published", "lamp-hq"}
    wanted = {f"tables/{name}.{suffix}" for name in names for suffix in ("csv", "tex")}
    files = {path.relative_to(tmp_path).as_posix() for path in written}
    assert files == {"tables.json", "summary.json", "report.html", *wanted}
    content = json.loads((tmp_path / "tables.json").read_text())
    assert set(content["tables"]) == names and content["failed"] == {"two": ["seed 0: the loss is nan"]}
    with open(tmp_path / "tables" / "lamp-hq.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["source"] for row in rows] == ["measured"] + ["published"] * (len(rows) - 1)
    assert "two failed: seed 0: the loss is nan" in (tmp_path / "report.html").read_text()


def test_nothing_to_report_leaves_the_previous_report(outcomes: list[MethodOutcome], tmp_path: Path) -> None:
    before = write(outcomes, tmp_path)
    assert before.startswith("<!DOCTYPE html>")
    with pytest.raises(DataError, match="nothing to report"):
        write_report([], tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_the_summary_is_strict_json(outcomes: list[MethodOutcome], tmp_path: Path) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    odd = figures("odd", train_seconds=float("nan"))
    odd["verification"] = {**odd["verification"], "accuracy": np.float32(0.5)}
    write([*outcomes, MethodOutcome("odd", 0, odd)], tmp_path)
    rows = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert [row["method"] for row in rows] == ["partialface", "duetface", "odd"]
    assert (rows[2]["train_seconds"], rows[2]["pair_accuracy"], rows[2]["leak"]) == (None, 0.5, None)


def test_published_numbers_are_those_of_the_list(shared: Path) -> None:
    """Every row of the list is in our tables, and no other."""
    listed = []
    for line in (shared / "published.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"[\d.]+|not given", cells[-1]):
            listed.append(tuple(cells))
    ours = []
    for table in published_tables():
        for row in table["rows"]:
            values = ["not given" if value is None else f"{value:.{table['digits']}f}" for value in row["values"]]
            place = table["title"].removeprefix("Heterogeneous: ")
            if table["title"] == "Visible light":
                ours.append((row["method"], "yes" if row["protects"] else "no", *values))
            elif place.startswith("Tufts"):
                ours.append((row["method"], *values))
            else:
                ours.append((place, row["method"], *values))
    assert sorted(ours) == sorted(listed)
    assert len(ours) == 20
