"""Small runs of the benchmarks that need a real server, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: object) -> tuple[int, str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert not done.stderr or done.returncode == 0, done.stderr
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_nothing_acknowledged_is_lost_or_doubled_when_the_server_is_killed(
    kind: str, deployment: Path, request: pytest.FixtureRequest
) -> None:
    chosen = ["--deployment", deployment, "--enrolments", 60, "--kills", 1]
    if kind == "postgresql":
        database: Callable[[], str] = request.getfixturevalue("postgres")
        chosen += ["--gallery", database()]
    status, printed = run("durability.py", *chosen)
    found = json.loads(printed)
    assert status == 0 and found["kills"] == 1
    assert found["faces"] == found["acknowledged"] == 60
    assert found["lost"] == found["doubled"] == found["not indexed"] == found["repeated with another face"] == 0
    assert found["gallery problems"] == []


@pytest.mark.slow
def test_load_is_measured(deployment: Path) -> None:
    chosen = ["--deployment", deployment, "--enrolled", 20, "--seconds", 0.5, "--concurrency", 1, 3]
    status, printed = run("load.py", *chosen, "--index", "approximate")
    found = json.loads(printed)
    assert status == 0 and found["command"].startswith("python benchmarks/load.py --deployment")
    assert [row["clients"] for row in found["clients"]] == [1, 3]
    for row in found["clients"]:
        assert row["answers"] > 0 and row["failed"] == 0 and 0 < row["p50 ms"] <= row["p99 ms"]


@pytest.mark.slow
def test_a_second_server_follows_the_first(deployment: Path) -> None:
    status, printed = run("servers.py", "--deployment", deployment, "--times", 2)
    found = json.loads(printed)
    assert status == 0 and (found["database"], found["times"]) == ("sqlite", 2)
    for what in ("enrolled ms", "deleted ms"):
        assert 0 < found[what]["median"] <= found[what]["p99"] <= found[what]["most"]
