"""The command line under torchrun: killed, terminated, restarted by torchrun itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ppfr
from ppfr.training.interruption import EXIT_STATUS
from ppfr.training.run import Run

DATA = "synthetic:people=8,images=6"
SETTINGS = (
    *("backbone.name=mobilefacenet", "backbone.width=0.125", "backbone.embedding_size=16", "precision=fp32"),
    *("training.batch_size=8", "training.losses.distil=0", "training.losses.margin=1", "training.freeze_norm=true"),
    *("warm_start_images=36", "checkpoint_minutes=0.000001"),
)
PATIENCE = 240


def command(out: Path, epochs: int, *more: str) -> list[str]:
    settings = [word for setting in (*SETTINGS, f"training.epochs={epochs}") for word in ("--set", setting)]
    return ["-m", "ppfr", "train", "arcface", "--data", DATA, "--out", str(out), *settings, *more]


def torchrun(out: Path, epochs: int, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"--max-restarts={restarts}"]
    launch += ["--monitor-interval", "0.1"]
    return subprocess.Popen(
        [sys.executable, *launch, *command(out, epochs, *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - started < PATIENCE, f"{file} never came"
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split()]


def steps(run: Run) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]


def assert_whole(run: Run, epochs: int) -> None:
    """Finished, loadable, every tenth step logged once, nothing torn left behind."""
    last = 48 // 8 * epochs
    assert steps(run) == [*range(10, last + 1, 10)] + ([last] if last % 10 else [])
    assert ppfr.load(run.folder).info.name == "arcface"
    assert not list(run.folder.glob("*checkpoint*"))
    assert not list(run.folder.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_torchrun_restarts_after_a_killed_rank(tmp_path: Path) -> None:
    """SIGKILL of one rank amid checkpoints: the others are stopped, all begin again and go on."""
    run = Run(tmp_path / "run")
    process = torchrun(run.folder, 12, "--resume", restarts=2)
    wait_for(run.checkpoint_file, process)
    os.kill(workers(process)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert_whole(run, 12)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_run_goes_on_alone(tmp_path: Path) -> None:
    """Without restarts torchrun gives up; one process takes the checkpoint of two."""
    run = Run(tmp_path / "run")
    process = torchrun(run.folder, 8)
    wait_for(run.checkpoint_file, process)
    os.kill(workers(process)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0, output
    state = run.load_checkpoint()
    assert state is not None and state["step"] >= 1
    again = subprocess.run(
        [sys.executable, *command(run.folder, 8, "--resume")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert_whole(run, 8)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "request_to_stop",
    [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow)],
)
def test_a_request_to_stop_writes_a_checkpoint(request_to_stop: signal.Signals, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    rare = ("--set", "checkpoint_minutes=1000")
    # a background job's children would inherit that Ctrl-C is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *command(run.folder, 500, *rare)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    signal.signal(signal.SIGINT, before)
    wait_for(run.metrics_file, process)
    assert not run.checkpoint_file.exists()
    process.send_signal(request_to_stop)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == EXIT_STATUS, output
    assert "--resume" in output and "Traceback" not in output
    state = run.load_checkpoint()
    assert state is not None and state["step"] >= steps(run)[-1]
