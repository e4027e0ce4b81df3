"""Published results to print beside ours; the figures and their sources are in `published.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from ppfr.reports.tables import PUBLISHED, Quantity, Row


@cache
def published_tables() -> list[dict[str, Any]]:
    """All tables: title, columns, rows of `method` and `values` (in %, None where nothing was given), note."""
    text = resources.files("ppfr.reports").joinpath("published.json").read_text(encoding="utf-8")
    tables: list[dict[str, Any]] = json.loads(text)["tables"]
    return tables


def published_rows(table: Mapping[str, Any], columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a published table under the given columns; a figure that was not published is missing."""
    for row in table["rows"]:
        given = dict(zip(table["columns"], row["values"], strict=True))
        yield Row(row["method"], tuple(Quantity(given.get(name)) for name in columns), PUBLISHED)


def published_table(protocol: str) -> dict[str, Any]:
    """The table of a heterogeneous protocol, by its name in `ppfr.data.protocols.heterogeneous.PROTOCOLS`."""
    return next(table for table in published_tables() if table.get("protocol") == protocol)
