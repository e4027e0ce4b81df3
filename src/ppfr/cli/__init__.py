"""The command line: `ppfr ...`, one module a command."""

from __future__ import annotations

import importlib
import sys

from rich.console import Console
from rich.markup import escape

from ppfr.cli.app import app
from ppfr.errors import PpfrError
from ppfr.memory import tune_memory

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
    "gallery",
    "web_assets",
    "recognise",
    "prepare",
    "convert",
    "lists",
)
for _command in COMMANDS:
    importlib.import_module(f"ppfr.cli.{_command}")


def main() -> None:
    """Entry point: turns errors meant for the user into one line and exit status 1."""
    tune_memory()
    try:
        app()
    except (PpfrError, OSError) as error:
        told = f"[red]{type(error).__name__}[/red]: {escape(str(error))}"
        Console(stderr=True).print(told, soft_wrap=True, highlight=False)
        sys.exit(1)
