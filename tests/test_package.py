"""The package as others install it: a wheel holds every file, and the command works far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from support.commands import TINY
from support.paths import ROOT

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path) -> str:
    """Run outside the checkout, without its paths; returns what was printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing left by earlier builds gets in; by the setuptools at hand, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder / "dist", folder, folder=folder)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel, and finds what it needs in the running one but not ppfr itself."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    # a folder on the path does not get its own .pth files read: an editable ppfr there stays unknown
    others = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--ignore-installed")
    run(*pip, wheel, folder=folder)
    return python.parent


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "ppfr").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("ppfr/")} == files


def test_quickstart_runs_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "python", "-c", "import ppfr; print(ppfr.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    run(environment / "ppfr", "quickstart", "--data", TINY, "--methods", "arcface", "--out", "out", folder=tmp_path)
    assert "<html" in (tmp_path / "out" / "report.html").read_text().lower()
    assert (tmp_path / "out" / "summary.json").is_file()
