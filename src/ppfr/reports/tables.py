"""Tables of measured figures, ours beside published ones, as CSV, LaTeX, Markdown and rows for a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from ppfr.reports.wording import MISSING

PUBLISHED = "published"
_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}


@dataclass(frozen=True)
class Quantity:
    """A figure, None where it was not measured or given, and its deviation over seeds or folds, None for a single one.

    `interval` is the 95 % interval of a figure from one seed, printed on pages.
    """

    value: float | None
    deviation: float | None = None
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Quantity:
        """Mean and sample deviation of what was measured."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(None)
        return cls(mean(known), stdev(known) if len(known) > 1 else None)

    def text(self, digits: int, plus_minus: str = " ± ") -> str:
        """In print."""
        if self.value is None:
            return MISSING
        spread = "" if self.deviation is None else f"{plus_minus}{self.deviation:,.{digits}f}"
        return f"{self.value:,.{digits}f}{spread}"


@dataclass(frozen=True)
class Column:
    """A heading with its unit, the number of digits printed, and the meaning in one phrase."""

    name: str
    digits: int = 1
    meaning: str = ""


@dataclass(frozen=True)
class Row:
    """One row; `source` is where it comes from (empty: measured here), `note` a remark on it."""

    name: str
    values: tuple[Quantity, ...]
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of figures under a title; rows from elsewhere stand below a rule."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"{self.title}: {row.name} has {len(row.values)} figures, not {len(self.columns)}")

    @property
    def parts(self) -> list[list[Row]]:
        """Rows measured here, then rows from elsewhere; no empty part."""
        ours, others = ([row for row in self.rows if bool(row.source) == there] for there in (False, True))
        return [part for part in (ours, others) if part]

    def cells(self, row: Row) -> list[str]:
        """A row in print."""
        return [value.text(column.digits) for value, column in zip(row.values, self.columns, strict=True)]

    def intervals(self, row: Row) -> list[str]:
        """The intervals of a row in print, empty where there is none."""
        return [
            "" if value.interval is None else "–".join(f"{edge:,.{column.digits}f}" for edge in value.interval)
            for value, column in zip(row.values, self.columns, strict=True)
        ]

    def to_csv(self) -> str:
        """Unrounded; deviations have columns of their own, what is not known is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = [name for column in self.columns for name in (column.name, f"{column.name}, deviation")]
        writer.writerow(["method", "source", *names])
        for row in self.rows:
            numbers = [number for value in row.values for number in (value.value, value.deviation)]
            writer.writerow([row.name, row.source or "measured", *("" if n is None else n for n in numbers)])
        return stream.getvalue()

    def to_latex(self) -> str:
        """A `table` for the packages booktabs and caption-free classes alike."""
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(' '.join((self.title + '.', *self.notes)))}}}",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            " & ".join(["Method", *(_latex(column.name) for column in self.columns)]) + r" \\",
        ]
        for part in self.parts:
            lines.append(r"\midrule")
            for row in part:
                cells = [
                    "--" if value.value is None else value.text(column.digits, r" $\pm$ ")
                    for value, column in zip(row.values, self.columns, strict=True)
                ]
                name = _latex(row.name) + (f" ({_latex(row.source)})" if row.source else "")
                lines.append(" & ".join([name, *cells]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def to_markdown(self) -> str:
        """A pipe table with its notes."""
        heads = ["Method", *(column.name for column in self.columns)]
        lines = [f"### {self.title}", "", _pipes(heads), "|---|" + "---:|" * len(self.columns)]
        for row in self.rows:
            name = row.name + (f" ({row.source})" if row.source else "")
            lines.append(_pipes([name, *self.cells(row)]))
        return "\n".join([*lines, "", *self.notes, ""])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.title,
            "columns": [column.name for column in self.columns],
            "rows": [
                {
                    "method": row.name,
                    "source": row.source or "measured",
                    "values": [value.value for value in row.values],
                    "deviations": [value.deviation for value in row.values],
                    "note": row.note,
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


def percent_of(share: float | None) -> float | None:
    """A share in [0,1] in %; None where it is unknown."""
    return None if share is None else 100 * share


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text.replace("\\", "/"))


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


__all__ = ["PUBLISHED", "Column", "Quantity", "Row", "Table", "percent_of"]
