"""A room imports only from rooms below it, and a folder's listing reads as a table of contents."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from support.scripts import load_script

# the drawing in the docs is made from the same table and the same imports
DRAWING = load_script(ROOT / "docs" / "architecture.py")
SOURCE: Path = DRAWING.SOURCE
ROOMS: list[dict[str, Any]] = DRAWING.read_floors()
MODULES: dict[str, Path] = DRAWING.find_modules()
FLOOR = {room["name"]: number for number, room in enumerate(ROOMS)}
# one entry a thing: these may be longer than a table of contents
LONG = {"methods", "networks", "recipes", "cli", "serving/http/page"}
MOST_ENTRIES = 12
# modules that still reach up, and folders that are still too long; each is to go from here with its mend
PENDING: set[str] = set()


def place(module: str) -> tuple[int, int]:
    """Floor of a module, and its floor inside the room; a room's own __init__, its door, is above all it holds."""
    name, _, rest = module.partition(".")
    room = ROOMS[FLOOR[name]]
    inside = [group.split() for group in room.get("inside", ())]
    entry = rest.partition(".")[0]
    if not inside:
        return FLOOR[name], 0
    if entry == "__init__":
        return FLOOR[name], len(inside)
    for level, group in enumerate(inside):
        if entry in group:
            return FLOOR[name], level
    levels = [level for level, group in enumerate(inside) if group == ["*"]]
    assert levels, f"docs/floors.toml does not say where {name}/{entry} belongs"
    return FLOOR[name], levels[0]


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_come_from_below(module: str, request: pytest.FixtureRequest) -> None:
    if module in PENDING:
        request.applymarker(pytest.mark.xfail(strict=True, reason="still reaches up"))
    here = place(module)
    for line, other in DRAWING.imports(MODULES[module], MODULES):
        # the package's own door is for users; __main__ and the door itself stand above all rooms
        assert "." in other, f"{MODULES[module]}:{line} imports ppfr itself; import from the room that defines it"
        assert place(other) <= here, (
            f"{MODULES[module].relative_to(ROOT)}:{line} imports {other}, which docs/floors.toml puts above it"
        )


def test_every_room_is_in_the_table() -> None:
    folders = {entry.name for entry in SOURCE.iterdir() if entry.is_dir() and (entry / "__init__.py").exists()}
    assert folders == set(FLOOR)


def test_a_listing_reads_as_a_table_of_contents() -> None:
    long = {}
    for folder in [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir())]:
        name = folder.relative_to(SOURCE).as_posix()
        entries = [entry.name for entry in folder.iterdir() if not entry.name.startswith(("_", "."))]
        if folder != SOURCE and name not in LONG and len(entries) > MOST_ENTRIES:
            long[name] = len(entries)
    assert not long, f"folders with more than {MOST_ENTRIES} entries: {long}"


def test_a_device_imports_neither_training_nor_the_exporter() -> None:
    """What `serving.client` imports, followed through all modules and through the packages that hold them."""
    forbidden = ("training", "serving.deployment", "attacks", "heads", "experiments")
    reached: dict[str, str] = {}
    waiting = [("serving.client", "")]
    while waiting:
        module, importer = waiting.pop()
        if module in reached:
            continue
        reached[module] = importer
        assert not f"{module}.".startswith(tuple(f"{room}." for room in forbidden)), (
            f"a device would load ppfr.{module}, which {importer} imports"
        )
        found = [(other, module) for _, other in DRAWING.imports(MODULES[module], MODULES) if "." in other]
        parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
        waiting += found + [(f"{parent}.__init__", module) for parent in parents if f"{parent}.__init__" in MODULES]
    assert {"serving.runtime.protector", "wire.message", "data.detection.align"} <= set(reached)


def test_no_test_imports_another() -> None:
    """What tests share lies in tests/support."""
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if any(part == "conftest" or part.startswith("test_") for name in names for part in name.split(".")):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found
