"""`ppfr compare` as a user types it: the tables, going on after a stop, and what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ppfr.auditing.card import NO_JUDGE, load_card
from ppfr.experiments.comparison import PRESETS, load_comparison
from ppfr.methods import Method
from ppfr.methods.arcface import ArcFace
from ppfr.recipes.recipe import built_in_names
from ppfr.training.interruption import EXIT_STATUS, Interrupted
from ppfr.training.run import Run
from ppfr.util.errors import RecipeError
from ppfr.util.files import sha256_file
from support.commands import TINY, ppfr_command

RECIPE = """
methods:
  - {method: arcface, set: &small {backbone: {width: 0.125, embedding_size: 16}, training: {epochs: 1, batch_size: 8}}}
  - {method: arcface-fd, label: all-channels, set: *small}
profile: quick
audit: null
seeds: [0, 1]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def tables(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tables.json").read_text())
    return content


@pytest.mark.slow
def test_a_comparison_writes_tables_and_goes_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = ["compare", recipe, "--data", TINY, "--out", folder]
    assert ppfr_command(*arguments, "--seeds", "0") == 0
    assert "One seed" in capsys.readouterr().out
    first = (folder / "runs" / "arcface-seed0" / "model.safetensors").stat().st_mtime_ns
    assert ppfr_command(*arguments) == 0
    assert (folder / "runs" / "arcface-seed0" / "model.safetensors").stat().st_mtime_ns == first
    found = tables(folder)["tables"]
    rows = found["accuracy"]["rows"]
    assert len(rows) == 2 and rows[1]["method"].endswith("(all-channels)")
    assert all(row["deviations"][0] is not None for row in rows)
    assert "over 2 seeds" in found["accuracy"]["notes"][0]
    with open(folder / "tables" / "accuracy.csv", newline="") as stream:
        assert float(next(csv.DictReader(stream))["pair accuracy, %"]) == rows[0]["values"][0]
    published = found["published"]["rows"]
    assert {row["source"] for row in published} == {"published"}
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "99.77" in page
    assert r"\toprule" in (folder / "tables" / "cost.tex").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_comparison_goes_on(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL amid the second method's training: the first is kept, the second goes on from its checkpoint."""
    slow = "{<<: *small, checkpoint_minutes: 0.000001, training: {epochs: 12, batch_size: 8}}"
    recipe.write_text(
        RECIPE.replace(
            "{method: arcface-fd, label: all-channels, set: *small}", f"{{method: arcface, label: slow, set: {slow}}}"
        )
    )
    folder = tmp_path / "out"
    arguments = ["compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0"]
    process = subprocess.Popen([sys.executable, "-m", "ppfr", *map(str, arguments)])
    run, first = Run(folder / "runs" / "slow-seed0"), folder / "runs" / "arcface-seed0" / "model.safetensors"
    started = time.monotonic()
    while not run.checkpoint_file.exists():
        assert process.poll() is None and time.monotonic() - started < 240
        time.sleep(0.02)
    process.kill()
    process.wait()
    state, written = run.load_checkpoint(), first.stat().st_mtime_ns
    assert state is not None and state["step"] >= 1
    # what was done is in the tables already
    assert [row["method"] for row in tables(folder)["tables"]["accuracy"]["rows"]] == [ArcFace.info.title]
    assert ppfr_command(*arguments) == 0
    assert first.stat().st_mtime_ns == written
    assert len(tables(folder)["tables"]["accuracy"]["rows"]) == 2
    steps = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert steps == sorted(set(steps)) and not list(run.folder.glob("*checkpoint*"))


def test_a_failure_is_told_and_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = "label: wild, set: {<<: *small, training: {epochs: 1, batch_size: 8, optimizer: {lr: 1.0e+30}}}"
    recipe.write_text(RECIPE.replace("label: all-channels, set: *small", wild))
    folder = tmp_path / "out"
    assert ppfr_command("compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0") == 1
    assert "1 of 2 failed: wild (seed 0)" in capsys.readouterr().err
    assert "the loss is" in tables(folder)["failed"]["wild"][0]
    assert len(tables(folder)["tables"]["accuracy"]["rows"]) == 1
    assert "wild failed" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_an_unforeseen_error_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(method: Method, *_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ArcFace, "stages", breaks)
    folder = tmp_path / "out"
    assert ppfr_command("compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0") == 1
    said = capsys.readouterr().err
    assert "1 of 2 failed: arcface (seed 0): RuntimeError: out of memory" in said and "Traceback" in said
    assert tables(folder)["failed"] == {"arcface": ["seed 0: RuntimeError: out of memory"]}
    assert len(tables(folder)["tables"]["accuracy"]["rows"]) == 1


def test_sigterm_ends_the_comparison_not_the_method(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(method: Method) -> None:
        raise Interrupted("SIGTERM stopped stage 'server'")

    monkeypatch.setattr(ArcFace, "stages", stopped)
    folder = tmp_path / "out"
    assert ppfr_command("compare", recipe, "--data", TINY, "--out", folder) == EXIT_STATUS
    assert "repeat the command to continue" in capsys.readouterr().err
    assert not (folder / "runs" / "all-channels-seed0").exists()


@pytest.mark.slow
def test_an_audited_comparison_draws_leak_and_front(recipe: Path, shared: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("audit: null", "audit: fast\nattacks: [linear-inversion]"))
    folder = tmp_path / "out"
    judge = shared / "models" / "mobilefacenet_ms1m.onnx"
    arguments = ["compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0", "--judge", judge]
    assert ppfr_command(*arguments) == 0
    leak = tables(folder)["tables"]["leak"]["rows"]
    assert [row["values"][0] for row in leak] == [0.0, 0.0]
    assert (folder / "cards" / "all-channels-seed0" / "card.html").is_file()
    assert "<svg" in (folder / "report.html").read_text()


def test_without_a_judge_the_audit_is_the_attacks_that_need_none(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("audit: null", "audit: fast\nattacks: [attribute-inference, linear-inversion]"))
    folder = tmp_path / "out"
    arguments = ["compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0", "--methods", "arcface"]
    assert ppfr_command(*arguments) == 0
    card = load_card(folder / "cards" / "arcface-seed0")
    assert [finding.status for finding in card.findings] == ["reliable", "no judge"] and card.judge is None
    page = (folder / "report.html").read_text()
    assert NO_JUDGE in page and NO_JUDGE in (folder / "cards" / "arcface-seed0" / "card.html").read_text()
    # pictures and figures are read from the folder again
    assert ppfr_command(*arguments) == 0
    assert (folder / "report.html").read_text() == page


@pytest.mark.slow
def test_a_teacher_is_trained_first_where_the_recipe_names_one(recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(
        "method: arcface\nbackbone: {width: 0.125, embedding_size: 16}\n"
        "training: {epochs: 1, batch_size: 8, losses: {margin: 1, distil: 0}}\n"
    )
    recipe.write_text(f"{RECIPE}teacher: {small}\n")
    folder = tmp_path / "out"
    assert ppfr_command("compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0") == 0
    record = Run(folder / "runs" / "all-channels-seed0").read_record()
    assert record["teacher"]["sha256"] == sha256_file(folder / "runs" / "teacher-seed0" / "model.safetensors")
    assert "trained here" in (folder / "report.html").read_text()


def test_every_method_is_measured_on_a_heterogeneous_protocol_too(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lamp, folder = tmp_path / "lamp", tmp_path / "out"
    faces = "synthetic:people=6,images=4"
    assert ppfr_command("simulate-hfr", "--faces", faces, "--protocol", "lamp-hq", "--out", lamp) == 0
    lines = RECIPE.splitlines()
    recipe.write_text("\n".join(line for line in lines if "all-channels" not in line))
    arguments = ["compare", recipe, "--data", TINY, "--out", folder, "--seeds", "0"]
    arguments += ["--heterogeneous", f"lamp-hq:{lamp},fold=1"]
    assert ppfr_command(*arguments) == 0
    rows = tables(folder)["tables"]["lamp-hq"]["rows"]
    assert rows[0]["method"] == f"simulated, {ArcFace.info.title}" and 0 <= rows[0]["values"][0] <= 100
    assert {row["source"] for row in rows[1:]} == {"published"}
    assert "SIMULATED" in capsys.readouterr().out
    assert (folder / "tables" / "lamp-hq.tex").is_file() and (folder / "tables" / "lamp-hq.csv").is_file()


def test_another_comparison_in_the_same_folder_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "comparison-settings.json").write_text(json.dumps({"data": "other", "recipe": {}}))
    assert ppfr_command("compare", recipe, "--data", TINY, "--out", folder) == 1
    assert "holds a comparison with another data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["arcface", "arcface"]}, r"labels \['arcface'\] stand twice"),
        ({"methods": []}, "no method is named"),
        ({"methods": [{"method": "arcface", "label": "../x"}]}, "a label names a folder"),
        ({"seeds": [1, 1]}, "repeat themselves"),
        ({"seeds": []}, "seeds"),
        ({"methods": [{"method": "arcface", "set": {"training": {"epoch": 1}}}]}, "training.epoch"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_comparison("quick", change)


def test_every_built_in_comparison_loads() -> None:
    names = built_in_names(PRESETS)
    assert {"quick", "quickstart", "standard", "strength"} <= set(names)
    for name in names:
        assert load_comparison(name).methods


def test_an_unknown_comparison_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no comparison 'fast'; built in: .*quick"):
        load_comparison("fast")
    with pytest.raises(RecipeError, match=r"none\.yaml does not exist"):
        load_comparison("none.yaml")
