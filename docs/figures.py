"""Print the table of docs/methods.md from the results of `ppfr compare`.

    python docs/figures.py OUT/tables.json

One line a method: pair accuracy, privacy score, the leak of the worst attack, payload bytes and the client's time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ppfr.reports.wording import MISSING

# (heading, table, column, digits)
COLUMNS = (
    ("pair accuracy, %", "accuracy", "pair accuracy, %", 1),
    ("privacy score", "leak", "privacy score", 2),
    ("worst leak, % of clear", "leak", "worst leak, % of clear photos'", 0),
    ("sent, kB", "cost", "payload sent, kB", 0),
    ("client, ms", "cost", "client, ms", 1),
)


def methods_table(content: dict[str, Any]) -> str:
    """A Markdown table made from the content of a comparison's `tables.json`."""
    tables = content["tables"]
    rows = {name: {row["method"]: row for row in table["rows"]} for name, table in tables.items()}
    lines = [f"| method | {' | '.join(heading for heading, *_ in COLUMNS)} | worst attack |"]
    lines.append("|---|" + "---:|" * len(COLUMNS) + "---|")
    for title in rows["accuracy"]:
        cells = []
        for _, table, column, digits in COLUMNS:
            row = rows.get(table, {}).get(title)
            place = tables[table]["columns"].index(column) if row else 0
            cells.append(_figure(row["values"][place], row["deviations"][place], digits) if row else MISSING)
        worst = rows.get("leak", {}).get(title, {}).get("note") or MISSING
        lines.append(f"| {title} | {' | '.join(cells)} | {worst} |")
    lines += [f"| {label} | failed: {'; '.join(reasons)} |" for label, reasons in content["failed"].items()]
    return "\n".join(lines) + "\n"


def _figure(value: float | None, deviation: float | None, digits: int) -> str:
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}" + ("" if deviation is None else f" ± {deviation:,.{digits}f}")


if __name__ == "__main__":
    print(methods_table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
