"""The command line: `ppfr ...`, one module a command."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys

from rich.console import Console
from rich.markup import escape

from ppfr.cli.app import app
from ppfr.errors import PpfrError

# in the order of --help; importing a module adds its commands to `app`
COMMANDS = (
    "quickstart",
    "train",
    "embed",
    "evaluate",
    "benchmark",
    "tradeoff",
    "wire_table",
    "simulate_hfr",
    "audit",
    "compare",
    "protect",
    "export",
    "serve",
    "recognise",
    "prepare",
    "convert",
    "lists",
)
for _command in COMMANDS:
    importlib.import_module(f"ppfr.cli.{_command}")


def tune_memory() -> None:
    """Make large tensors cheap to take and to free, which on a CPU otherwise costs page faults all the time.

    PyTorch asks Linux for huge pages when a variable says so before the first tensor is made: passes over hundreds of
    DCT channels become up to five times faster. glibc keeps freed memory instead of handing it back (5 to 15 % of a
    training step); blocks over 32 MB still go back, so that the heap does not grow ragged. Elsewhere neither matters.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # from malloc.h
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)


def main() -> None:
    """Entry point: turns errors meant for the user into one line and exit status 1."""
    tune_memory()
    try:
        app()
    except (PpfrError, OSError) as error:
        told = f"[red]{type(error).__name__}[/red]: {escape(str(error))}"
        Console(stderr=True).print(told, soft_wrap=True, highlight=False)
        sys.exit(1)
