"""Draws docs/pictures/architecture.svg: the rooms of src/ppfr as floors, and which room imports which.

    python docs/architecture.py

It reads docs/floors.toml and the import statements, so the drawing cannot differ from the code; tests/test_docs.py
checks that the committed file is what this writes now. tests/test_architecture.py reads imports through it, too.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "ppfr"
FLOORS = ROOT / "docs" / "floors.toml"
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"


# --- what the code says ----------------------------------------------------------------------------------------------
def read_floors() -> list[dict[str, Any]]:
    """The rooms from the ground floor up: name, what it holds, and the order inside where there is one."""
    rooms: list[dict[str, Any]] = tomllib.loads(FLOORS.read_text(encoding="utf-8"))["room"]
    return rooms


def find_modules() -> dict[str, Path]:
    """Dotted name of every module below `ppfr`, without the package's own name, and its file."""
    return {".".join(file.relative_to(SOURCE).with_suffix("").parts): file for file in sorted(SOURCE.rglob("*.py"))}


def imports(file: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and module of every import of ours in a file, those inside functions and type checks included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ppfr":
            inside = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                yield node.lineno, _module(modules, f"{inside}.{alias.name}".lstrip("."), inside)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ppfr":
                    yield node.lineno, _module(modules, ".".join(alias.name.split(".")[1:]))


def _module(modules: dict[str, Path], *names: str) -> str:
    """The first of `names` that is a module or a package; a package is named by its __init__."""
    for name in names:
        for module in (name, f"{name}.__init__".lstrip(".")):
            if module in modules:
                return module
    raise AssertionError(f"none of {names} is a module of ppfr")


def find_room_imports() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports something of the second."""
    modules = find_modules()
    found = {
        (name.partition(".")[0], other.partition(".")[0])
        for name, file in modules.items()
        if "." in name
        for _, other in imports(file, modules)
        if "." in other
    }
    return {(room, other) for room, other in found if room != other}


def folders(room: str) -> list[str]:
    """The sub-rooms of a room."""
    return sorted(path.parent.name for path in (SOURCE / room).glob("*/__init__.py"))


# --- the drawing -----------------------------------------------------------------------------------------------------
FLOOR_HEIGHT, GAP = 46, 4
LEFT, TOP = 16, 128
NAME_WIDTH, ROOM_WIDTH = 136, 660
CELL = 30
WRAP = 78
# groups of rooms, for the eye alone
GROUPS = {
    "building blocks": ("#e8f1fb", "util transforms networks wire distributed heads data"),
    "methods and their training": ("#eaf6ea", "methods recipes training"),
    "measurement and attacks": ("#fdf1e3", "evaluation attacks auditing"),
    "running a method": ("#f3ecfa", "serving"),
    "commands and reports": ("#f1f1f1", "experiments reports cli"),
}


def draw() -> str:
    """The SVG; the same bytes for the same code."""
    floors, found = read_floors(), find_room_imports()
    names = [room["name"] for room in floors]
    matrix = LEFT + ROOM_WIDTH + 24
    width = matrix + CELL * len(names) + 70
    height = TOP + (FLOOR_HEIGHT + GAP) * len(floors) + 52
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" fill="#222">',
        "<title>Rooms of ppfr, from the ground floor up, and the imports between them</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, 30, "Rooms of src/ppfr", size=19, weight="bold"),
        *(
            _text(LEFT, 52 + 17 * number, line, size=12.5, fill="#555")
            for number, line in enumerate(
                [
                    "A room may import from the floors below it and from no other; a test enforces this.",
                    "A disc: the room of this row imports from the room of this column.",
                ]
            )
        ),
    ]
    for column, name in enumerate(names):
        x = matrix + CELL * column + CELL / 2
        parts.append(_text(x, TOP - 10, name, size=12, turn=f"rotate(-50 {x:g} {TOP - 10})"))
    for number, room in enumerate(floors):
        y = TOP + (FLOOR_HEIGHT + GAP) * (len(floors) - 1 - number)
        parts += [*_floor(room, y), *_row(names, number, found, matrix, y)]
    ground = TOP + (FLOOR_HEIGHT + GAP) * len(floors)
    parts.append(f'<path d="M{LEFT} {ground} H{matrix + CELL * len(names)}" stroke="#555" stroke-width="2"/>')
    x = LEFT
    for label, (colour, _) in GROUPS.items():
        parts.append(f'<rect x="{x}" y="{ground + 14}" width="16" height="16" rx="3" fill="{colour}" stroke="#bbb"/>')
        parts.append(_text(x + 22, ground + 27, label, size=12.5, fill="#555"))
        x += 60 + 7 * len(label)
    return "\n".join([*parts, "</svg>", ""])


def _floor(room: dict[str, Any], y: int) -> Iterator[str]:
    name = room["name"]
    colour = next((colour for colour, rooms in GROUPS.values() if name in rooms.split()), "#fff")
    yield (
        f'<rect x="{LEFT}" y="{y}" width="{ROOM_WIDTH}" height="{FLOOR_HEIGHT}" rx="5" fill="{colour}" stroke="#bbb"/>'
    )
    yield _text(LEFT + 12, y + 28, name, size=16, weight="bold")
    lines = [(line, "#222", "") for line in textwrap.wrap(room["holds"].replace("`", ""), WRAP)]
    if inside := folders(name):
        lines.append(
            ("  ".join(f"{folder}/" for folder in inside), "#666", ' font-family="Menlo, Consolas, monospace"')
        )
    assert len(lines) <= 2, f"docs/floors.toml: what {name} holds is longer than the drawing's lines"
    first = y + (28 if len(lines) == 1 else 19)
    for number, (line, fill, font) in enumerate(lines):
        yield _text(LEFT + NAME_WIDTH, first + 18 * number, line, size=12.5, fill=fill, more=font)


def _row(names: list[str], number: int, found: set[tuple[str, str]], left: int, y: int) -> Iterator[str]:
    """The imports of one floor: shaded where they would be allowed, a disc where there are some."""
    if number:
        yield f'<rect x="{left}" y="{y}" width="{CELL * number}" height="{FLOOR_HEIGHT}" fill="#f4f4f4"/>'
    middle = y + FLOOR_HEIGHT / 2
    for column, other in enumerate(names):
        if (names[number], other) in found:
            fill = "#2c6fb3" if column < number else "#c22"
            yield f'<circle cx="{left + CELL * (column + 0.5):g}" cy="{middle:g}" r="7" fill="{fill}"/>'
    yield _text(left + CELL * number + 6, middle + 4, names[number], size=12, fill="#888")


def _text(
    x: float, y: float, words: str, *, size: float, fill: str = "", weight: str = "", turn: str = "", more: str = ""
) -> str:
    given = {"fill": fill, "font-weight": weight, "transform": turn}
    chosen = "".join(f' {name}="{value}"' for name, value in given.items() if value)
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{chosen}{more}>{escape(words)}</text>'


def main() -> None:
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()
