"""A command in several processes on this machine."""

from __future__ import annotations

import subprocess
import sys

import typer


def under_torchrun(processes: int) -> None:
    """Repeat this command, as it was typed, in as many processes; exits with their status when they fail."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "ppfr"]
    done = subprocess.run([sys.executable, *launch, *sys.argv[1:]], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
