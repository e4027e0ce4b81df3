"""`ppfr benchmark` as a user types it, on sets that the test writes, to the files it leaves."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppfr.data.formats.pair_files import load_bin
from ppfr.data.protocols.benchmarks import find_suites
from ppfr.data.sources import open_faces
from support.benchmarksets import write_carray, write_ijb, write_rfw
from support.commands import ppfr_command


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LFW and CFP-FP of ten pairs each, and a simulated LAMP-HQ."""
    root = tmp_path_factory.mktemp("sets")
    faces = open_faces("synthetic:people=10,images=4")
    images = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in faces.images()]
    same, other = [images[i] for p in range(5) for i in (4 * p, 4 * p + 1)], images[20:]
    pairs = [image for pair in zip(same, other[:10], strict=True) for image in pair]
    (root / "bins").mkdir()
    for name, content in (("lfw", same + pairs[:10]), ("CFP-FP", pairs)):
        with open(root / "bins" / f"{name}.bin", "wb") as stream:
            pickle.dump((content, [True] * 5 + [False] * 5), stream)
    arguments = ["--faces", "synthetic:people=6,images=4", "--protocol", "lamp-hq", "--out", root / "LAMP-HQ"]
    assert ppfr_command("simulate-hfr", *arguments) == 0
    for file in [*root.rglob("*[2-9].txt"), *root.rglob("*10.txt")]:
        file.unlink()
    return root


def test_json_and_files(untrained: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    assert ppfr_command("benchmark", untrained, "--data", sets, "--json", "--out", out) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["suites"]) == ["lfw", "cfp_fp", "lamp-hq"]
    assert {entry["path"] for entry in printed["missing"]} >= {"agedb_30", "calfw", "cplfw", "tufts"}
    lfw = printed["suites"]["lfw"]
    assert lfw["rates"]["LFW"] == lfw["figures"]["accuracy"]
    assert "20 pairs, not the 6,000" in lfw["remarks"][0] or "10 pairs, not the 6,000" in lfw["remarks"][0]
    assert printed["suites"]["lamp-hq"]["simulated"] is True
    assert 0 <= printed["suites"]["lamp-hq"]["rates"]["Rank-1"] <= 1
    written = json.loads((out / "benchmark.json").read_text())
    assert written["command"].startswith("ppfr benchmark") and written["suites"] == printed["suites"]
    with open(out / "tables" / "visible.csv") as stream:
        rows = list(csv.DictReader(stream))
    ours = next(row for row in rows if row["source"] == "measured")
    assert float(ours["LFW"]) == pytest.approx(100 * lfw["rates"]["LFW"]) and ours["IJB-B"] == ""
    duetface = next(row for row in rows if row["method"] == "DuetFace")
    assert ours["method"].endswith("(not the published set: LFW, CFP-FP)")
    assert (duetface["source"], duetface["LFW"], duetface["IJB-C"]) == ("published", "99.82", "95.3")
    assert "PrivacyHFR (published)" in (out / "tables" / "lamp-hq.tex").read_text()
    page, markdown = (out / "benchmark.html").read_text(), (out / "benchmark.md").read_text()
    for text in (page, markdown):
        assert "DuetFace" in text and "SIMULATED" in text and "not comparable" in text and "CALFW was not" in text


def test_templates_and_groups(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ijb(tmp_path / "IJBB")
    write_ijb(tmp_path / "IJBC", "ijbc", searches=False)
    write_rfw(tmp_path / "RFW", aligned=False)
    command = ("benchmark", untrained, "--data", tmp_path, "--no-flip", "--out", tmp_path / "out")
    assert ppfr_command(*command, "--json") == 0
    plain = json.loads(capsys.readouterr().out)["suites"]
    assert list(plain) == ["rfw", "ijbb", "ijbc"]
    assert set(plain["rfw"]["rates"]) == {"African", "Indian", "mean", "deviation"}
    assert "no list of Asian, Caucasian." in plain["rfw"]["remarks"]
    verified = plain["ijbb"]["figures"]["verification"]
    assert verified["genuine"] == 6 and plain["ijbb"]["rates"]["IJB-B"] == verified["tpr"]["0.0001"]
    search = plain["ijbb"]["figures"]["search"]
    assert {name: (one["mated"], one["nonmated"]) for name, one in search.items()} == {"S1": (3, 3), "S2": (3, 3)}
    mean = (search["S1"]["rank"]["1"] + search["S2"]["rank"]["1"]) / 2
    assert plain["ijbb"]["rates"]["Rank-1"] == pytest.approx(mean)
    assert any("no 1:N" in remark for remark in plain["ijbc"]["remarks"])
    assert any("do not resolve FPR 1e-06" in remark for remark in plain["ijbb"]["remarks"])
    assert {"visible.csv", "ijb.csv", "rfw.csv"} <= {file.name for file in (tmp_path / "out" / "tables").iterdir()}
    assert ppfr_command(*command, "--suite", "ijbb", "--keep-norms", "--detector-scores", "--json") == 0
    weighed = json.loads(capsys.readouterr().out)["suites"]["ijbb"]
    assert weighed["figures"]["verification"]["auc"] != verified["auc"]
    assert "images weigh by length and detector." in weighed["remarks"]
    assert ppfr_command(*command) == 0
    assert "TPIR" in capsys.readouterr().out


def test_arrays_of_face_evolve_give_the_same_as_bin_files(
    untrained: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("blosc", reason="arrays of bcolz need the extra 'bcolz'")
    faces = load_bin(sets / "bins" / "lfw.bin")
    images = faces.images[np.stack([faces.pairs.first, faces.pairs.second], axis=1).ravel()]
    write_carray(tmp_path, "lfw", images, faces.pairs.same.tolist())
    rates = []
    for folder in (sets, tmp_path):
        capsys.readouterr()
        assert ppfr_command("benchmark", untrained, "--data", folder, "--suite", "lfw", "--json") == 0
        rates.append(json.loads(capsys.readouterr().out)["suites"]["lfw"]["figures"])
    assert rates[0] == rates[1]
    # where both are, the file counts
    shutil.copy(sets / "bins" / "lfw.bin", tmp_path)
    assert find_suites(tmp_path, ["lfw"]).paths["lfw"] == tmp_path / "lfw.bin"


def test_a_public_recogniser_is_printed_beside_the_published(
    shared: Path, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared / "models" / "mobilefacenet_casia_068.ckpt"
    assert ppfr_command("benchmark", model, "--data", sets, "--suite", "lfw", "--no-flip") == 0
    printed = capsys.readouterr().out
    assert "mobilefacenet_casia_068.ckpt (unprotected)" in printed and "published, DuetFace" in printed
    assert "LAMP-HQ" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "lfw,ytf"], "--suite 'lfw,ytf': ytf is no benchmark; expected some of lfw"),
        (["--suite", "calfw"], "no benchmark found: calfw not in"),
        (["--suite", "lfw,calfw", "--strict"], "calfw not in"),
    ],
)
def test_what_is_not_there(
    untrained: Path,
    sets: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert ppfr_command("benchmark", untrained, "--data", sets, *options) == 1
    assert message in capsys.readouterr().err


def test_a_run_for_each_fold_has_no_pairs(untrained: Path, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppfr_command("benchmark", f"{untrained}/fold{{fold}}", "--data", sets) == 1
    assert "names a run for each fold, and lfw has none" in capsys.readouterr().err


def test_one_broken_set_does_not_stop_the_others(
    untrained: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lfw.bin").write_bytes((sets / "bins" / "lfw.bin").read_bytes())
    (tmp_path / "calfw.bin").write_bytes(b"nothing")
    command = ("benchmark", untrained, "--data", tmp_path, "--suite", "calfw,lfw", "--no-flip")
    assert ppfr_command(*command, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["suites"]) == ["lfw"]
    assert "not an InsightFace .bin file" in printed["failed"][0]["reason"]
    assert ppfr_command(*command) == 1
    assert "CALFW failed" in capsys.readouterr().err
    assert ppfr_command(*command, "--strict") == 1
    assert "not an InsightFace .bin file" in capsys.readouterr().err


def test_one_benchmark_in_two_places_is_refused(
    untrained: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lfw.bin").write_bytes(b"")
    assert ppfr_command("benchmark", untrained, "--data", tmp_path) == 1
    assert "LFW lies in" in capsys.readouterr().err
