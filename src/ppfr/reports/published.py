"""Published results to print beside ours; the figures and their sources are in `published.json`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def published_tables() -> list[dict[str, Any]]:
    """All tables: title, columns, rows of `method` and `values` (in %, None where nothing was given), note."""
    text = resources.files("ppfr.reports").joinpath("published.json").read_text(encoding="utf-8")
    tables: list[dict[str, Any]] = json.loads(text)["tables"]
    return tables


def published_table(protocol: str) -> dict[str, Any]:
    """The table of a heterogeneous protocol, by its name in `ppfr.data.protocols.heterogeneous.PROTOCOLS`."""
    return next(table for table in published_tables() if table.get("protocol") == protocol)
