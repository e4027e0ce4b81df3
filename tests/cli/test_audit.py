"""`ppfr audit` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppfr.auditing.card import NO_JUDGE, Card, load_card
from ppfr.cli import audit as command
from support.commands import TINY, ppfr_command


@pytest.fixture
def judge(shared: Path) -> Path:
    return shared / "models" / "mobilefacenet_ms1m.onnx"


@pytest.mark.slow
def test_an_audit_writes_a_card_and_a_page(
    untrained: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", TINY, "--judge", judge, "--attacks", "linear-inversion", "--out", tmp_path / "a"]
    assert ppfr_command("audit", untrained, *arguments) == 0
    printed = capsys.readouterr().out
    card = load_card(tmp_path / "a")
    assert card.verdict in printed and "cut: at most 40 people" in printed and "linear-inversion: sees one" in printed
    assert card.privacy == 0 and card.faces.synthetic and card.teacher is None
    page = (tmp_path / "a" / "card.html").read_text()
    assert card.verdict in page and "synthetic faces" in page and "ppfr audit" in page
    again = [*arguments[:-1], tmp_path / "b"]
    assert ppfr_command("audit", untrained, *again, "--json") == 0
    printed_card = json.loads(capsys.readouterr().out)
    assert load_card(tmp_path / "b").model_dump(exclude={"times"}) == card.model_dump(exclude={"times"})
    assert {**printed_card, "times": 0} == {**card.model_dump(mode="json"), "times": 0}


def test_cards_are_compared(
    make_card: Callable[..., Card],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        make_card(name=folder.name).save(folder)
    assert ppfr_command("audit", "--compare", *folders, "--out", tmp_path) == 0
    assert "linear-inversion" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="plot"') == 2 and "Toy &lt;one&gt;" in page
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 2
    assert ppfr_command("audit", "--compare", folders[0] / "card.json", "--out", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["method"] == "one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "RUN", "--data", TINY], "2 runs given; audit one at a time"),
        (["RUN"], "needs --data (aligned faces)"),
        (["RUN", "--data", TINY, "--judge", "gone.onnx", "--out", "x"], "gone.onnx"),
        (["--compare", "RUN", "--out", "x"], "card.json does not exist; write a card with"),
        (["--compare", "CARD"], "--compare needs --out"),
        (["--compare", "CARD", "--out", "COMPARISON"], "holds the report of a comparison"),
    ],
)
def test_mistakes_get_one_clear_line(
    arguments: list[str],
    message: str,
    untrained: Path,
    make_card: Callable[..., Card],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_card().save(tmp_path)
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison-settings.json").write_text("{}")
    places = {"RUN": str(untrained), "CARD": str(tmp_path), "COMPARISON": str(tmp_path / "comparison")}
    assert ppfr_command("audit", *[places.get(one, one) for one in arguments]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert message in text
    assert "Traceback" not in text


def test_faces_are_kept_out_of_repositories(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the audit ran before its folder was refused")

    monkeypatch.setattr(command, "audit_run", never)
    out = tmp_path / "deep" / "card"
    arguments = ["--data", tmp_path, "--judge", "judge.onnx", "--out", out]
    assert ppfr_command("audit", untrained, *arguments) == 1
    assert "lies inside the git repository" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_whose_name_begins_like_a_synthetic_source_holds_real_faces(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "synthetic_faces").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ppfr_command("audit", untrained, "--data", "synthetic_faces", "--out", tmp_path / "card") == 1
    assert "lies inside the git repository" in capsys.readouterr().err
    arguments = ["--data", "synthetic_faces", "--out", tmp_path / "out"]
    for command_line in (["compare", "quick"], ["quickstart"]):
        assert ppfr_command(*command_line, *arguments) == 1
        assert "lies inside the git repository" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_audit_without_a_judge_says_so(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", TINY, "--attacks", "linear-inversion", "--out", tmp_path]
    assert ppfr_command("audit", untrained, *arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no judge" in printed and f"{NO_JUDGE}; linear inversion recovers images" in printed
    assert NO_JUDGE in (tmp_path / "card.html").read_text()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("audit", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "must also succeed on a weakened target" in text and "--compare" in text
