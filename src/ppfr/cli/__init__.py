"""The command line: `ppfr ...`, one module a command."""

from __future__ import annotations

import importlib
import inspect
import sys

import typer
from rich.console import Console
from rich.markup import escape

from ppfr.cli.app import app
from ppfr.util.errors import PpfrError
from ppfr.util.memory import tune_memory

# every command and its module, in the order of --help; importing a module adds its commands to the application
COMMANDS = {
    "quickstart": "quickstart",
    "train": "train",
    "embed": "embed",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "tradeoff": "tradeoff",
    "wire-table": "wire_table",
    "simulate-hfr": "simulate_hfr",
    "audit": "audit",
    "compare": "compare",
    "protect": "protect",
    "export": "export",
    "serve": "serve",
    "gallery": "gallery",
    "web-assets": "web_assets",
    "enrol": "recognise",
    "recognise": "recognise",
    "verify": "recognise",
    "prepare": "prepare",
    "convert": "convert",
    "methods": "lists",
    "recipes": "lists",
}


def application(command: str | None = None) -> typer.Typer:
    """The application with one command, which saves the imports of the others, or with all if there is none such."""
    for module in [COMMANDS[command]] if command in COMMANDS else COMMANDS.values():
        importlib.import_module(f"ppfr.cli.{module}")
    _reflow(app)
    return app


def _reflow(commands: typer.Typer) -> None:
    """Let the terminal wrap the paragraphs of docstrings, whose own line ends typer keeps."""
    for command in commands.registered_commands:
        paragraphs = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(
            part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs.split("\n\n")
        )
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _reflow(group.typer_instance)


def main() -> None:
    """Entry point: turns errors meant for the user into one line and exit status 1."""
    tune_memory()
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)(prog_name="ppfr")
    except (PpfrError, OSError) as error:
        message = f"[red]{type(error).__name__}[/red]: {escape(str(error))}"
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)
        sys.exit(1)
