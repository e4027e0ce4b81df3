"""The page and the summary: complete, honest, closed to the outside, and safe with anybody's text."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppfr.evaluation.metrics.similarity import ssim
from ppfr.reports.published import published_tables
from ppfr.reports.report import SUMMARY_KEYS, MethodResult, Report, render_report, write_report, write_summary
from ppfr.util.errors import DataError, ShapeError

THREAT = "sees one payload; knows the deployment's secrets; has public faces"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def picture(seed: int, side: int = 112) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def result(method: str = "partialface", title: str = "PartialFace", **changes: Any) -> MethodResult:
    made = MethodResult(
        method=method,
        title=title,
        paper="Mi et al., ICCV 2023",
        row={
            "method": method,
            "pair_accuracy": 0.915,
            "accuracy_low": 0.901,
            "accuracy_high": 0.928,
            "leak_rank1": 0.949,
            "ceiling_rank1": 0.983,
            "ssim": 0.71,
            "payload_bytes": 1354752,
            "client_ms": 1.83,
            "server_ms": 9.9,
            "train_seconds": 341.0,
        },
        verification={
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
        cost={
            "client_parameters": 0,
            "server_parameters": 1204480,
            "client_macs": 2_100_000,
            "server_macs": 227_000_000,
            "payload_bytes_raw": 1354752,
            "payload_bytes_sent": 1165000,
            "device": "cpu",
            "threads": 2,
        },
        leakage={
            "attack": "linear-inversion",
            "threat": THREAT,
            "judge": "judge.onnx",
            "people": 59,
            "rank1": 0.949,
            "rank1_interval": [0.88, 0.99],
            "ceiling_rank1": 0.983,
            "chance": 1 / 59,
            "privacy": 0.035,
            "ssim": 0.71,
            "ssim_interval": [0.69, 0.73],
            "psnr": 21.3,
            "psnr_interval": [20.8, 21.9],
        },
        originals=[picture(0), picture(1)],
        seen=[picture(2, 224), picture(3, 224)],
        recovered=[picture(4), picture(5)],
        notes=["a note"],
        seen_caption="27 channels of 112×112",
    )
    return replace(made, **changes)


def bare(method: str = "new", title: str = "New") -> MethodResult:
    """Nothing was measured of it."""
    row: dict[str, Any] = dict.fromkeys(SUMMARY_KEYS)
    return MethodResult(method, title, "", {**row, "method": method}, {}, {}, None, [], [], None)


def report(*results: MethodResult, synthetic: bool = True, **changes: Any) -> Report:
    made = Report(
        title="What it recognises, costs and leaks",
        data={
            "name": "synthetic:people=20",
            "people": 177,
            "images": 3508,
            "test_people": 59,
            "test_images": 1170,
            "synthetic": synthetic,
        },
        teacher="teacher.ckpt",
        judge="judge.onnx",
        results=list(results) or [result(), result("duetface", "DuetFace")],
        command="ppfr quickstart --out out",
        seed=5,
        versions={"ppfr": "0.1.0", "torch": "2.13.0"},
        warnings=["a.jpg: cut short"],
    )
    return replace(made, **changes)


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
    def test_it_loads_nothing_and_runs_nothing(self) -> None:
        text = render_report(report())
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

    def test_ids_are_unique_and_pictures_are_described(self) -> None:
        page = Page(render_report(report()))
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        images = [found for tag, found in page.elements if tag == "img"]
        assert len(images) == 2 * 6
        assert all(found["alt"] for found in images)
        assert images[0]["alt"] == "photo, face 1"

    def test_figures_are_told_in_words_and_numbers(self) -> None:
        text = Page(render_report(report())).text
        for told in (
            "2 methods on synthetic:people=20",
            "trained on 177 people, 3,508 images",
            "tested on 59 people, 1,170 images",
            "teacher: teacher.ckpt",
            "judge of leaks: judge.onnx",
            "Judges 91.5 % of photo pairs correctly (95 % interval 90.1–92.8 %; guessing: 50 %).",
            "94.9 % are re-identified (95 % interval 88.0–99.0 %; from clear photos 98.3 %; by guessing 1.7 %).",
            "93.0 % 90.0–95.0 %",
            "40.0 % too few pairs to resolve",
            "0.970 0.960–0.980",
            "8.5 % 7.0–10.0 %",
            "21.3 dB 20.8–21.9 dB",
            "1.35 MB",
            "1.17 MB",
            "1.20 M",
            "5 min 41 s",
            "3,000 same-person and 3,000 different-person pairs",
            "one query from each of 59 people, judged by judge.onnx",
            "cpu, 2 threads",
            "a note",
            "27 channels of 112×112",
            "ppfr quickstart --out out",
            "seed 5",
            "torch 2.13.0",
            "1 warning a.jpg: cut short",
        ):
            assert told in text, told

    def test_every_leak_comes_with_its_attacker(self) -> None:
        text = render_report(report())
        threat = html.escape(THREAT, quote=False).replace("'", "&#39;")
        for method in ("PartialFace", "DuetFace"):
            cards = [block for block in blocks(text, "article") if method in block]
            assert len(cards) == 2
            assert all(threat in card for card in cards)
        figure = next(block for block in blocks(text, "figure") if "leakage-title" in block)
        assert threat in figure
        table = next(block for block in blocks(text, "table") if "Privacy score" in block)
        assert table.count(threat) == 2

    def test_attackers_that_differ_are_told_apart(self) -> None:
        weaker = result("duetface", "DuetFace")
        weaker.leakage = {**(weaker.leakage or {}), "threat": "sees one payload; knows nothing; has no data"}
        text = Page(render_report(report(result(), weaker))).text
        assert "Attacker of PartialFace linear-inversion: sees one payload; knows the deployment's secrets" in text
        assert "Attacker of DuetFace linear-inversion: sees one payload; knows nothing" in text

    def test_synthetic_faces_are_named_at_every_figure(self) -> None:
        text = render_report(report())
        mark = "synthetic faces"
        assert "none of them says how well a method" in Page(text).text
        ours = [block for block in blocks(text, "figure") if 'class="published"' not in block]
        assert len(ours) == 4
        assert all(mark in block for block in ours)
        assert all(mark in block for block in blocks(text, "svg"))
        assert all(mark in block for block in blocks(text, "tr") if 'class="group"' in block)
        headings = blocks(text, "h2")
        assert [mark in heading for heading in headings] == [True, True, True, True, False, False, False]

    def test_real_faces_are_not_called_synthetic(self) -> None:
        made = report(synthetic=False)
        made.data["name"] = "faces"
        assert "synthetic" not in Page(render_report(made)).text.lower()

    def test_pictures_stand_in_order_with_their_likeness(self) -> None:
        one = result()
        assert one.recovered is not None
        pair = torch.from_numpy(np.stack([one.recovered[0], one.originals[0]])).permute(0, 3, 1, 2).double() / 255
        text = Page(render_report(report(one))).text
        assert f"SSIM {float(ssim(pair[:1], pair[1:])):.2f}" in text
        positions = [text.index(label) for label in ("photo 1", "what the server") if label in text]
        assert positions == sorted(positions)

    def test_published_results_are_complete_and_apart(self) -> None:
        text = render_report(report())
        figures = [block for block in blocks(text, "figure") if 'class="published"' in block]
        assert len(figures) == 4
        assert all("not comparable with ours line by line" in block for block in figures)
        assert "published, MS1Mv2-scale training" in figures[0]
        marked = re.findall(r'<tr class="shared"><th scope="row">(.*?)</th>', figures[0])
        assert marked == ["DuetFace"]
        assert "not given" in figures[0]

    def test_limits_are_told(self) -> None:
        text = Page(render_report(report())).text
        assert "a leak that was not found is not a proof" in text
        assert "Low likeness is not privacy" in text

    def test_it_is_reproducible(self) -> None:
        assert render_report(report()) == render_report(report())

    def test_many_warnings_are_folded_but_kept(self) -> None:
        warnings = [f"{index}.jpg: empty file" for index in range(30)]
        text = render_report(report(warnings=warnings))
        assert "30 warnings" in text
        assert "22 more" in text
        assert all(f"<li>{warning}</li>" in text for warning in warnings)


class TestNotMeasured:
    def test_nothing_at_all(self) -> None:
        made = report(bare(), teacher=None, judge=None, warnings=[], synthetic=False)
        text = Page(render_report(made)).text
        assert "was not measured" in text
        assert "No attack was run, so nothing is known here" in text
        assert "no judge" in text
        assert "no teacher" in text
        assert not re.search(r"\b(None|nan|inf|NaN)\b", text)
        assert "<svg" not in render_report(made)

    def test_no_judge(self) -> None:
        one = result()
        one.row = {**one.row, "leak_rank1": None, "ceiling_rank1": None}
        unknown = dict.fromkeys(("judge", "rank1", "rank1_interval", "ceiling_rank1", "chance", "privacy"))
        one.leakage = {**(one.leakage or {}), **unknown}
        text = Page(render_report(report(one, judge=None))).text
        assert "Accuracy against likeness" in text
        assert "Accuracy against leakage" not in text
        assert "likeness stands in for it, which is weaker evidence" in text
        assert "how many people it identifies is not known" in text
        assert "0.71 0.69–0.73" in text
        assert not re.search(r"\b(None|nan)\b", text)

    def test_one_of_two_methods(self) -> None:
        text = Page(render_report(report(result(), bare()))).text
        assert "The leak was not measured for New." in text
        assert "no attack" in text
        assert "—" in text

    def test_not_finite_is_not_measured(self) -> None:
        one = result()
        one.row = {**one.row, "pair_accuracy": math.nan, "leak_rank1": math.inf}
        assert not re.search(r"\b(None|nan|inf|NaN)\b", Page(render_report(report(one))).text)


class TestHostileText:
    ATTACK = "</title></style></svg><script>alert('x')</script><img src=\"http://evil\" onerror=x> & {{ 7 * 7 }}"

    def test_every_text_is_escaped(self) -> None:
        bad = self.ATTACK
        one = result(bad, bad, paper=bad, notes=[bad], seen_caption=bad)
        one.leakage = {**(one.leakage or {}), "attack": bad, "threat": bad, "judge": bad}
        one.verification["interval"] = bad
        one.cost["device"] = bad
        made = report(one, title=bad, teacher=bad, judge=bad, command=bad, versions={bad: bad}, warnings=[bad])
        made.data["name"] = bad
        text = render_report(made)
        page = Page(text)
        assert "<script" not in text
        assert "http://evil" not in "".join(page.attributes("src", "href"))
        assert not page.attributes("onerror")
        assert page.text.count(bad) >= 20
        assert "49" not in re.findall(r"<title>(.*?)</title>", text)[0]


class TestRefusals:
    def test_no_result(self) -> None:
        with pytest.raises(DataError, match="at least one method's result"):
            render_report(report(results=[]))

    def test_a_picture_that_is_none(self) -> None:
        one = result(originals=[picture(0).astype(np.float32)])
        with pytest.raises(ShapeError, match=r"float32 \(112, 112, 3\); expected RGB uint8"):
            render_report(report(one))

    def test_a_refused_report_leaves_the_previous_one(self, tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        write_report(report(), path)
        before = path.read_text(encoding="utf-8")
        assert before.startswith("<!DOCTYPE html>")
        with pytest.raises(DataError):
            write_report(report(results=[]), path)
        assert path.read_text(encoding="utf-8") == before
        assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


class TestSummary:
    def strict(self, path: Path) -> Any:
        def refuse(name: str) -> float:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)

    def test_rows_hold_exactly_the_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.json"
        write_summary([result(), bare()], path)
        rows = self.strict(path)
        assert [list(row) for row in rows] == [list(SUMMARY_KEYS)] * 2
        assert rows[0] == result().row
        assert set(rows[1].values()) == {"new", None}

    def test_numpy_and_not_finite_numbers(self, tmp_path: Path) -> None:
        one = result()
        one.row = {**one.row, "ssim": math.nan, "client_ms": math.inf, "pair_accuracy": np.float32(0.5)}
        write_summary([one], tmp_path / "summary.json")
        (row,) = self.strict(tmp_path / "summary.json")
        assert (row["ssim"], row["client_ms"], row["pair_accuracy"]) == (None, None, 0.5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"extra": 1}, r"has unexpected \['extra'\]"), ({"ssim": ...}, r"lacks \['ssim'\]")],
    )
    def test_other_keys_are_refused(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        one = result()
        one.row = {key: value for key, value in {**one.row, **change}.items() if value is not ...}
        with pytest.raises(DataError, match=message):
            write_summary([one], tmp_path / "summary.json")
        assert not list(tmp_path.iterdir())


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
