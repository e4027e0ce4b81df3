"""The public functions: each does what its command does, from objects or from files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ppfr
from support.commands import TINY

SMALL = {"backbone": {"width": 0.125, "embedding_size": 16}, "training": {"epochs": 1, "batch_size": 8}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "arcface"
    method = ppfr.train("arcface", TINY, folder, profile="quick", overrides=SMALL)
    assert isinstance(method, ppfr.Method) and (folder / "model.safetensors").is_file()
    return folder


def test_a_run_and_its_method_verify_alike(run: Path) -> None:
    found = ppfr.evaluate(run, TINY)
    assert 0 <= found.accuracy <= 1
    assert ppfr.evaluate(ppfr.load(run), TINY) == found


@pytest.mark.slow
def test_a_run_judges_the_audit_of_a_client_of_ones_own(run: Path, tmp_path: Path) -> None:
    method = ppfr.custom_method("clear", lambda images, generator: images)
    found = ppfr.audit(method, TINY, judge=run, attacks=["linear-inversion"], out=tmp_path)
    assert found.card.judge is not None and found.card.judge.name == "arcface run"
    assert (tmp_path / "card.html").is_file() and (tmp_path / "card.json").is_file()
    (tmp_path / ".git").mkdir()
    with pytest.raises(ppfr.DataError, match="lies inside the git repository"):
        ppfr.audit(run, tmp_path, out=tmp_path / "deeper")


def test_a_comparison_writes_its_report(run: Path, tmp_path: Path) -> None:
    changes = {"methods": [{"method": "arcface", "set": SMALL}], "teacher": None, "audit": None}
    (outcome,) = ppfr.compare("quickstart", TINY, tmp_path, teacher=run, changes=changes)
    assert not outcome.failed and outcome.figures is not None
    assert json.loads((tmp_path / "summary.json").read_text())[0]["method"] == "arcface"
    assert (tmp_path / "report.html").is_file()


def test_importing_ppfr_loads_nothing_until_a_name_is_used() -> None:
    script = (
        "import sys, ppfr\n"
        "assert not [name for name in sys.modules if name.startswith(('ppfr.', 'torch', 'numpy'))]\n"
        "assert set(ppfr.__all__) <= set(dir(ppfr))\n"
        "assert all(getattr(ppfr, name) is not None for name in ppfr.__all__)\n"
        "try:\n    ppfr.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "module 'ppfr' has no attribute 'nothing'" in printed
