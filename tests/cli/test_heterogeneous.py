"""Heterogeneous data on the command line, as a user types it: simulate, train on a fold, evaluate the folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import ppfr.cli.quickstart
import ppfr.experiments.workbench
from ppfr.experiments.comparison import load_comparison
from ppfr.recipes.recipe import load_recipe
from support.commands import FAST, ppfr_command

FACES = "synthetic:people=6,images=4"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated LAMP-HQ in `lamp`, and in `fold1` and `fold2` a run trained on each of its first two folds."""
    folder = tmp_path_factory.mktemp("heterogeneous")
    arguments = ["--faces", FACES, "--protocol", "lamp-hq", "--out", folder / "lamp"]
    assert ppfr_command("simulate-hfr", *arguments) == 0
    for fold in (1, 2):
        data = f"lamp-hq:{folder / 'lamp'},fold={fold}"
        arguments = ["arcface", "--data", data, "--out", folder / f"fold{fold}", *FAST]
        assert ppfr_command("train", *arguments) == 0
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert ppfr_command("evaluate", *arguments, "--no-flip", "--json") == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_a_run_is_measured_on_the_fold_it_was_trained_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, said = evaluated(capsys, place / "fold2", "--data", f"lamp-hq:{place / 'lamp'}")
    assert [fold["fold"] for fold in result["heterogeneous"]["folds"]] == [2]
    assert "was trained on fold 2, so fold 2 alone is measured" in said
    assert result["heterogeneous"]["simulated"] is True and result["simulation"]["seed"] == 0
    assert result["heterogeneous"]["data"] == "simulated LAMP-HQ" and result["heterogeneous"]["deviation"] is None
    fold = result["heterogeneous"]["folds"][0]
    assert 0 <= fold["rank1"] <= 1 and set(fold["vr"]) == {"0.01", "0.001", "0.0001"}
    assert fold["genuine"] == fold["probes"] and fold["impostor"] == fold["probes"] * (fold["people"] - 1)


def test_testing_on_people_it_trained_on_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("evaluate", place / "fold2", "--data", f"lamp-hq:{place / 'lamp'},fold=1") == 1
    assert "was trained on fold 2" in capsys.readouterr().err


def test_a_run_for_each_fold(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = place / "two"
    shutil.copytree(place / "lamp", data)
    for file in [*data.rglob("*[3-9].txt"), *data.rglob("*10.txt")]:
        file.unlink()
    result, _ = evaluated(capsys, place / "fold{fold}", "--data", f"lamp-hq:{data}")
    both = result["heterogeneous"]
    assert [fold["fold"] for fold in both["folds"]] == [1, 2]
    single, _ = evaluated(capsys, place / "fold1", "--data", f"lamp-hq:{data},fold=1")
    assert single["heterogeneous"]["folds"] == both["folds"][:1]
    ranks = [fold["rank1"] for fold in both["folds"]]
    assert both["mean"]["Rank-1"] == pytest.approx(np.mean(ranks))
    assert both["deviation"]["Rank-1"] == pytest.approx(np.std(ranks, ddof=1))


def test_the_table_says_simulated_and_stands_beside_the_published(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppfr_command("evaluate", place / "fold1", "--data", f"lamp-hq:{place / 'lamp'},fold=1") == 0
    printed = capsys.readouterr().out
    assert "simulated, fold 1" in printed and "SIMULATED: the near-infrared images were computed" in printed
    published = next(line for line in printed.splitlines() if "published, PrivacyHFR" in line)
    assert published.split()[2:] == ["99.0", "99.3", "98.7", "93.9", "-", "-"]
    assert "impostor comparisons are too few to measure FAR 0.0001" in printed


def test_missing_files_are_named_counted_and_fatal_with_strict(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "lamp"
    shutil.copytree(place / "lamp", data)
    lists = data / "Protocol/test"
    lines = (lists / "probe_nir1.txt").read_text().splitlines()
    (data / lines[0].split()[0]).unlink()
    gallery = (lists / "gallery_vis1.txt").read_text().splitlines()
    (data / gallery[-1].split()[0]).unlink()
    without = sum(line.split()[1] == gallery[-1].split()[1] for line in lines)
    source = f"lamp-hq:{data},fold=1"
    result, said = evaluated(capsys, place / "fold1", "--data", source)
    fold = result["heterogeneous"]["folds"][0]
    assert fold["unmatched"] == without > 0
    assert fold["probes"] == len(lines) - 1 - without
    assert f"{lines[0].split()[0]}: file not found" in said and f"{2 + without} skipped" in said
    assert ppfr_command("evaluate", place / "fold1", "--data", source, "--strict") == 1
    assert "2 refused under strict" in capsys.readouterr().err


def test_real_images_are_not_called_simulated(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "lamp", tmp_path / "lamp")
    (tmp_path / "lamp/SIMULATED.json").unlink()
    assert ppfr_command("evaluate", place / "fold1", "--data", f"lamp-hq:{tmp_path / 'lamp'},fold=1") == 0
    assert "simulated" not in capsys.readouterr().out.lower()


def test_the_report_of_a_run_says_simulated(place: Path) -> None:
    record = json.loads((place / "fold2" / "run.json").read_text())
    assert record["data"]["name"] == "simulated LAMP-HQ fold 2 (train)"


def test_a_public_recogniser_is_the_unprotected_reference(
    place: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = shared / "models" / "mobilefacenet_casia_068.ckpt"
    result, _ = evaluated(capsys, teacher, "--data", f"lamp-hq:{place / 'lamp'},fold=1")
    assert result["method"] == "mobilefacenet_casia_068.ckpt"
    assert result["heterogeneous"]["folds"][0]["people"] == 20
    pairs = tmp_pairs(place / "lamp", place / "pairs.csv")
    capsys.readouterr()
    assert ppfr_command("evaluate", teacher, "--data", pairs, "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["cost"] is None and measured["verification"]["accuracy"] > 0


def tmp_pairs(data: Path, path: Path) -> Path:
    """A list of twelve pairs of visible-light photos, one half of them the photo itself."""
    photos = sorted((data / "VIS").iterdir())[:12]
    rows = [f"{photo},{photo},1" for photo in photos[:6]]
    rows += [f"{first},{second},0" for first, second in zip(photos[:6], photos[6:], strict=True)]
    path.write_text("\n".join(["path_a,path_b,same", *rows]) + "\n")
    return path


def test_sixteen_bit_and_grey_images_train(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "lamp"
    shutil.copytree(place / "lamp", data)
    for file in sorted((data / "NIR").iterdir())[:8]:
        grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        # the name keeps its suffix: readers look at the content
        file.write_bytes(cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes())
    arguments = ["arcface", "--data", f"lamp-hq:{data}", "--out", tmp_path / "run", *FAST, "--strict"]
    assert ppfr_command("train", *arguments) == 0


def test_quickstart_says_simulated(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"training": {"epochs": 1, "batch_size": 8}, "backbone": {"width": 0.125, "embedding_size": 16}}
    monkeypatch.setattr(
        ppfr.experiments.workbench, "load_recipe", lambda name, **how: load_recipe(name, **{**how, "overrides": small})
    )
    monkeypatch.setattr(
        ppfr.cli.quickstart, "load_comparison", lambda name, changes: load_comparison(name, {**changes, "audit": None})
    )
    arguments = ["quickstart", "--data", f"lamp-hq:{place / 'lamp'},fold=2", "--methods", "arcface", "--out", tmp_path]
    assert ppfr_command(*arguments) == 0
    assert "simulated LAMP-HQ fold 2 (test)" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "gone", "--data", "lamp-hq:{lamp}"], "gone does not exist; give a run folder"),
        (["evaluate", "gone", "--data", "lamp-hq:nowhere"], "nowhere: no such folder"),
        (["evaluate", "gone", "--data", "tufts:{lamp}"], "no complete fold of Tufts"),
        (["simulate-hfr", "--faces", "x", "--protocol", "lamp-hq", "--out", "y"], "x: no such data set"),
        (["simulate-hfr", "--faces", FACES, "--protocol", "lfw", "--out", "y"], "no protocol 'lfw'"),
        (["simulate-hfr", "--faces", FACES, "--protocol", "tufts", "--out", "{lamp}"], "holds another simulated"),
        (["simulate-hfr", "--faces", FACES, "--protocol", "tufts", "--lists", "z", "--out", "y"], "z: no such folder"),
    ],
)
def test_mistakes_get_one_clear_line(
    place: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ppfr_command(*(argument.format(lamp=place / "lamp") for argument in arguments)) == 1
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text
    assert not (tmp_path / "y").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("simulate-hfr", "--help") == 0
    assert "SIMULATED.json" in capsys.readouterr().out
