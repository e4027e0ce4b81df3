"""The command line as a user types it, on synthetic faces, to the files it leaves."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file
from typer.core import TyperGroup
from typer.main import get_command

import ppfr
from ppfr.cli import COMMANDS, application
from support.commands import FAST, TINY, photo, ppfr_command


def test_training_leaves_a_run_folder(trained: Path) -> None:
    assert {file.name for file in trained.iterdir()} == {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "model.safetensors",
        "secrets.safetensors",
        "tensorboard",
    }
    assert ppfr.load(trained).info.name == "partialface"


def test_evaluate_prints_json(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("evaluate", trained, "--data", TINY, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "partialface"
    assert 0 <= result["verification"]["accuracy_low"] <= result["verification"]["accuracy"] <= 1
    assert result["cost"]["payload_bytes_raw"] == 27 * 112 * 112 * 4


def test_evaluate_reads_insightfaces_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = [photo(tmp_path / "one.png", seed).read_bytes() for seed in range(40)]
    content = (encoded, [True, False] * 10)
    (tmp_path / "pairs.bin").write_bytes(pickle.dumps(content))
    assert ppfr_command("evaluate", trained, "--data", tmp_path / "pairs.bin", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verification"]["pairs"] == 20


def test_evaluate_prints_for_people(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("evaluate", trained / "model.safetensors", "--data", TINY) == 0
    assert "PartialFace" in capsys.readouterr().out


def test_protect_writes_payloads_and_pictures(trained: Path, tmp_path: Path) -> None:
    photos = [photo(tmp_path / "in" / "a.png", 1), photo(tmp_path / "in" / "b" / "a.png", 2)]
    assert ppfr_command("protect", trained, tmp_path / "in", "--out", tmp_path / "sent", "--seed", 3) == 0
    sent = sorted(file.name for file in (tmp_path / "sent").iterdir())
    assert sent == ["a-0.png", "a-0.safetensors", "a-1.png", "a-1.safetensors"]
    method = ppfr.load(trained)
    payload = ppfr.Payload.load(tmp_path / "sent" / "a-0.safetensors", method.schema)
    assert method.embed(payload).shape == (1, 16)
    assert len(photos) == 2


def test_protect_resumes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays; what is protected later draws as it would have in an unbroken run."""
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png", number)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert ppfr_command("protect", trained, tmp_path / "in", "--out", whole, "--seed", 3) == 0
    broken.mkdir()
    (broken / "1.safetensors").write_bytes(b"kept")
    command = ("protect", trained, tmp_path / "in", "--out", broken, "--seed", 3, "--resume")
    assert ppfr_command(*command) == 0
    assert "1 of 3 photos are protected already" in capsys.readouterr().out
    assert (broken / "1.safetensors").read_bytes() == b"kept"
    for name in ("0.safetensors", "2.safetensors"):
        assert torch.equal(*(load_file(folder / name)["channels"] for folder in (whole, broken)))
    assert ppfr_command(*command) == 0
    assert "3 of 3 photos are protected already" in capsys.readouterr().out


def test_settings_of_the_payload_may_differ_from_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image = tmp_path / "run", photo(tmp_path / "a.png")
    ppfr.save(ppfr.create("privacyhfr", "mobilefacenet", width=0.125, embedding_size=16, pattern="none"), folder)
    command = ("protect", folder, image, "--out", tmp_path / "sent", "--set", "pattern=dra", "--set", "iterations=1")
    assert ppfr_command(*command) == 0
    assert list(load_file(tmp_path / "sent" / "a.safetensors")) == ["pattern"]
    capsys.readouterr()
    assert ppfr_command("evaluate", folder, "--data", TINY, "--no-flip", "--json") == 0
    assert "first step alone" in json.loads(capsys.readouterr().out)["remarks"][0]
    assert ppfr_command("evaluate", folder, "--data", TINY, "--set", "raw_range=false") == 1
    assert "raw_range cannot change after training" in capsys.readouterr().err


def test_tradeoff_draws_accuracy_against_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppfr.save(ppfr.create("proface-c", "mobilefacenet", width=0.125, embedding_size=16), tmp_path / "run")
    arguments = ("tradeoff", tmp_path / "run", "--data", TINY, "--out", tmp_path / "out")
    assert ppfr_command(*arguments, "--sweep", "bits=8,2", "--sweep", "pruning=0,0.9") == 0
    assert "Fewest bytes while losing less than 1.0%" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert [list(p["settings"].values()) for p in record["points"]] == [[8, 0], [8, 0.9], [2, 0], [2, 0.9]]
    assert record["best"]["sent_bytes"] <= record["points"][0]["sent_bytes"]
    assert cv2.imread(str(tmp_path / "out" / "tradeoff.png")) is not None
    assert ppfr_command(*arguments, "--sweep", "bits") == 1
    assert "--sweep 'bits' is not NAME=VALUE,VALUE" in capsys.readouterr().err


def test_fresh_draws_differ(trained: Path, tmp_path: Path) -> None:
    """Without a seed two payloads of one photo come from the system's entropy: 18 kinds, so ten rarely agree."""
    image = photo(tmp_path / "a.png")
    contents = set()
    for number in range(10):
        out = tmp_path / str(number)
        assert ppfr_command("protect", trained, image, "--out", out) == 0
        contents.add((out / "a.safetensors").read_bytes())
    assert len(contents) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nofacenet", "--data", TINY, "--out", "x"], "no recipe 'nofacenet'; built in: arcface"),
        (["train", "arcface", "--data", "nowhere", "--out", "x"], "nowhere"),
        (
            ["train", "arcface", "--data", TINY, "--out", "x", "--set", "training.epoks=1"],
            "training.epoks: unknown key; expected one of epochs, repeats, batch_size, ",
        ),
        (["train", "arcface", "--data", TINY, "--out", "x", "--teacher", "gone.pt"], "gone.pt"),
        (["evaluate", __file__, "--data", TINY], f"{Path(__file__).name} is no PyTorch checkpoint"),
        (["evaluate", "nowhere", "--data", TINY], "nowhere does not exist; give a run folder"),
        (["quickstart", "--methods", "nofacenet"], "no method 'nofacenet'"),
        (["recipes", "nofacenet"], "no recipe 'nofacenet'"),
    ],
)
def test_mistakes_get_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ppfr_command(*arguments) == 1
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert ppfr_command("train", "arcface", "--data", TINY, "--out", out, "--device", name) == 2
    assert name in capsys.readouterr().err
    assert not out.exists()


def test_a_broken_photo_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert ppfr_command("protect", trained, tmp_path / "broken.jpg", "--out", tmp_path / "out") == 1
    assert "broken.jpg" in capsys.readouterr().err


def test_broken_images_are_skipped_and_counted_or_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for person in range(10):
        for image in range(3):
            photo(tmp_path / "data" / str(person) / f"{image}.png", 10 * person + image)
    (tmp_path / "data" / "0" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["train", "arcface", "--data", tmp_path / "data", *FAST]
    assert ppfr_command(*arguments, "--out", tmp_path / "strict", "--strict") == 1
    assert "torn.jpg" in capsys.readouterr().err
    assert ppfr_command(*arguments, "--out", tmp_path / "run") == 0
    assert "torn.jpg" in capsys.readouterr().err


def test_methods_and_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("methods", "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["partialface"]["secrets"] == ["subsets", "orders"]
    assert ppfr_command("methods", "slerpface", "partialface") == 0
    shown = capsys.readouterr().out
    assert "Zhong et al." in shown and "options.base_options = {}" in shown and "client secrets: subsets" in shown
    assert ppfr_command("methods") == 0
    listed_lines = capsys.readouterr().out
    assert all(f" {name} " in listed_lines for name in ppfr.method_names())
    assert ppfr_command("recipes") == 0
    assert "duetface" in capsys.readouterr().out
    assert ppfr_command("recipes", "duetface", "--profile", "paper") == 0
    assert "method: duetface" in capsys.readouterr().out


@pytest.mark.slow
def test_quickstart_writes_summary_and_report_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quickstart", "--data", TINY, "--methods", "arcface,partialface", "--out", tmp_path]
    arguments += ["--attacks", "linear-inversion"]
    assert ppfr_command(*arguments) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["method"] for row in rows] == ["arcface", "partialface"]
    assert set(rows[0]) == {
        *("method", "label", "title", "seeds", "failed", "verdict", "pareto", "worst", "privacy"),
        *("pair_accuracy", "accuracy_low", "accuracy_high", "accuracy_deviation"),
        *("leak", "leak_low", "leak_high", "leak_rank1", "ceiling_rank1", "ssim", "ssim_low", "ssim_high"),
        *("payload_bytes", "client_ms", "server_ms", "train_seconds"),
    }
    assert "no judge: identification not measured" in rows[0]["verdict"] and rows[0]["leak_rank1"] is None
    # the unprotected image comes back as it is; PartialFace's only in part
    assert rows[0]["ssim"] > 0.99 > rows[1]["ssim"]
    report = (tmp_path / "report.html").read_text()
    assert "synthetic" in report.lower()
    trained = (tmp_path / "runs" / "partialface-seed0" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "runs" / "arcface-seed0")
    assert ppfr_command(*arguments) == 0
    assert (tmp_path / "runs" / "partialface-seed0" / "model.safetensors").stat().st_mtime_ns == trained
    assert (tmp_path / "runs" / "arcface-seed0" / "model.safetensors").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_of_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert ppfr_command(command, "--help") == 0
    told = capsys.readouterr().out
    assert f"Usage: ppfr {command} " in told
    # where a word is longer than its column, its end is lost
    assert "…" not in told


def test_every_command_is_known_by_name_and_its_paragraphs_are_wrapped_by_the_terminal() -> None:
    group = get_command(application())
    assert isinstance(group, TyperGroup)
    assert set(group.commands) == set(COMMANDS)
    for command in group.commands.values():
        assert all("\n" not in part for part in (command.help or "").split("\n\n"))


def test_a_command_is_found_without_loading_the_others() -> None:
    script = (
        "import sys; from ppfr.cli import application\n"
        "application('recipes')(['recipes'], standalone_mode=False)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('ppfr.cli.')))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "partialface" in told
    assert told.splitlines()[-1] == "ppfr.cli.app ppfr.cli.lists"
