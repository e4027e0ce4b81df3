"""Pages whose tables and drawings come from code are complete and up to date."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import ppfr
from support.paths import ROOT
from support.scripts import load_script

DOCS = ROOT / "docs"
PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return load_script(DOCS / "figures.py")


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.stem)
def test_examples_find_what_they_import(file: Path) -> None:
    assert callable(load_script(file).main)


def test_every_method_has_a_paragraph_and_a_picture() -> None:
    assert sorted(re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)) == ppfr.method_names()
    shown = re.findall(r"\]\((pictures/.+?)\)", PAGE)
    assert {f"pictures/{name}.webp" for name in ["clear", *ppfr.method_names()]} == set(shown)
    assert sum((DOCS / picture).stat().st_size for picture in shown) < 500_000


def test_the_table_has_a_line_a_method(figures: ModuleType) -> None:
    def row(method: str, *values: float | None, deviation: float | None = None, note: str = "") -> dict[str, object]:
        return {"method": method, "values": values, "deviations": [deviation for _ in values], "note": note}

    tables = {
        "accuracy": {
            "columns": ["pair accuracy, %"],
            "rows": [row("One", 97.28, deviation=0.5), row("Two", 80)],
        },
        "leak": {
            "columns": ["privacy score", "worst leak, % of clear photos'"],
            "rows": [row("One", 0.254, 74.6, note="linkage")],
        },
        "cost": {
            "columns": ["payload sent, kB", "client, ms"],
            "rows": [row("One", 8246.2, 1.25), row("Two", None, 0.01)],
        },
    }
    printed = figures.methods_table({"tables": tables, "failed": {"three": ["seed 0: why"]}}).splitlines()
    assert len({line.count("|") for line in printed[:4]}) == 1
    assert printed[2] == "| One | 97.3 ± 0.5 | 0.25 | 75 | 8,246 | 1.2 | linkage |"
    assert printed[3] == "| Two | 80.0 | — | — | — | 0.0 | — |"
    assert printed[4] == "| three | failed: seed 0: why |"


def test_the_drawing_of_the_rooms_is_what_the_code_makes_now() -> None:
    script = load_script(DOCS / "architecture.py")
    assert script.PICTURE.read_text(encoding="utf-8") == script.draw(), "run `python docs/architecture.py`"


def test_files_that_the_page_of_rooms_names_exist() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / "src" / "ppfr" / name).exists() and not (ROOT / name).exists()]
