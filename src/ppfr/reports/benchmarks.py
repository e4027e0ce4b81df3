"""What `ppfr benchmark` writes: a model's figures beside the published ones, as JSON, a page and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppfr.data.faceset import Skipped
from ppfr.data.protocols.benchmarks import SUITES, SuiteKind
from ppfr.evaluation.suites import SuiteResult
from ppfr.reports.pages import render
from ppfr.reports.published import published_rows, published_tables
from ppfr.reports.tables import Column, Quantity, Row, Table, percent_of
from ppfr.util.files import atomic_write

RESULT_FILE, MARKDOWN_FILE, PAGE_FILE, TABLES_FOLDER = "benchmark.json", "benchmark.md", "benchmark.html", "tables"
_OURS = "Rows without a source were measured here, the others are as published, with training sets of their own."


@dataclass(frozen=True)
class BenchmarkReport:
    """One model's results; `about` is what the run was, `missing` and `failed` name benchmarks without a result."""

    method: str
    title: str
    about: Mapping[str, Any]
    results: Mapping[str, SuiteResult]
    missing: Sequence[Skipped] = ()
    failed: Sequence[Skipped] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": 1,
            "method": self.method,
            "title": self.title,
            **self.about,
            "suites": {name: result.to_dict() for name, result in self.results.items()},
            "missing": [skipped._asdict() for skipped in self.missing],
            "failed": [skipped._asdict() for skipped in self.failed],
            "tables": {name: table.to_dict() for name, table in self.tables().items()},
        }

    def tables(self) -> dict[str, Table]:
        """The tables that have a figure of ours, by the name of their files."""
        tables = {}
        for published in published_tables():
            if "protocol" in published:
                if published["protocol"] in self.results:
                    tables[published["protocol"]] = self._protocol(published)
            elif any(result.suite.column in published["columns"] for result in self.results.values()):
                tables["visible"] = self._visible(published)
        if "rfw" in self.results:
            tables["rfw"] = self._groups(self.results["rfw"])
        if templates := [result for result in self.results.values() if result.suite.kind is SuiteKind.IJB]:
            tables["ijb"] = self._templates(templates)
        return tables

    def remarks(self) -> Iterator[str]:
        """Remarks on the figures, each with its benchmark."""
        for result in self.results.values():
            for remark in result.remarks:
                yield f"{result.suite.title}: {remark}"
            if result.skipped:
                path, reason = result.skipped[0]
                yield f"{result.suite.title}: {len(result.skipped)} left out, the first {path}: {reason}"

    def _visible(self, published: Mapping[str, Any]) -> Table:
        rates = {name: rate for result in self.results.values() for name, rate in result.rates.items()}
        columns = tuple(Column(name, published["digits"]) for name in published["columns"])
        shown = [result for result in self.results.values() if result.suite.column in published["columns"]]
        parts = [result.suite.column for result in shown if not result.whole]
        # in the name, which no format leaves out
        name = f"{self.title} (not the published set: {', '.join(parts)})" if parts else self.title
        ours = Row(name, tuple(Quantity(percent_of(rates.get(column.name))) for column in columns))
        notes = [f"{result.suite.title}: {remark}" for result in shown for remark in result.remarks]
        return Table(
            published["title"],
            columns,
            (ours, *published_rows(published, published["columns"])),
            (published["note"], f"Published: {published['training']}.", _OURS, *notes),
        )

    def _groups(self, result: SuiteResult) -> Table:
        columns = tuple(Column(name, 2) for name in result.rates)
        row = Row(self.title, tuple(Quantity(percent_of(rate)) for rate in result.rates.values()))
        about = "Accuracy over 10 folds in %; the deviation is over the groups: how far they lie apart."
        return Table("RFW: four groups of people", columns, (row,), (about, *result.remarks))

    def _templates(self, results: Sequence[SuiteResult]) -> Table:
        names = list(dict.fromkeys(name for result in results for name in result.rates if name != result.suite.column))
        rows = [
            Row(result.suite.title, tuple(Quantity(percent_of(result.rates.get(n))) for n in names))
            for result in results
        ]
        about = "1:1 over all template pairs; 1:N with mixed probes, the mean over both galleries; in %."
        notes = [f"{result.suite.title}: {remark}" for result in results for remark in result.remarks]
        return Table(f"Templates: {self.title}", tuple(Column(name, 2) for name in names), tuple(rows), (about, *notes))

    def _protocol(self, published: Mapping[str, Any]) -> Table:
        result = self.results[published["protocol"]]
        names = list(result.rates)
        values = tuple(
            Quantity(percent_of(rate), percent_of(result.deviations.get(name))) for name, rate in result.rates.items()
        )
        mark = "simulated, " if result.simulated else ""
        return Table(
            published["title"],
            tuple(Column(name, published["digits"]) for name in names),
            (Row(f"{mark}{self.title}", values), *published_rows(published, names)),
            (published["note"], f"Published: {published['training']}.", "Deviations are over folds.", *result.remarks),
        )


def write_benchmark(report: BenchmarkReport, folder: Path, command: str = "") -> list[Path]:
    """Write `benchmark.json`, `.md` and `.html` and each table as CSV and LaTeX into `folder`; returns their paths."""
    tables = report.tables()
    texts = {
        RESULT_FILE: to_json({**report.to_dict(), "command": command}),
        MARKDOWN_FILE: _markdown(report, tables),
        PAGE_FILE: _page(report, tables, command),
    }
    for name, table in tables.items():
        texts[f"{TABLES_FOLDER}/{name}.csv"] = table.to_csv()
        texts[f"{TABLES_FOLDER}/{name}.tex"] = table.to_latex()
    for file, text in texts.items():
        atomic_write(folder / file, text)
    return [folder / file for file in texts]


def to_json(values: Mapping[str, Any]) -> str:
    """The text of a JSON file."""
    return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _facts(report: BenchmarkReport) -> list[str]:
    return [f"{key}: {value}" for key, value in report.about.items() if value not in (None, [], "")]


def _warnings(report: BenchmarkReport) -> list[str]:
    return [
        *(f"{SUITES[name].title} failed: {reason}" for name, reason in report.failed),
        *report.remarks(),
        *(f"{SUITES[name].title} was not measured: {reason}" for name, reason in report.missing),
    ]


def _markdown(report: BenchmarkReport, tables: Mapping[str, Table]) -> str:
    facts = "\n".join(f"- {fact}" for fact in _facts(report))
    warnings = "\n".join(f"- {warning}" for warning in _warnings(report))
    parts = [f"# {report.title}: benchmarks", facts, *(table.to_markdown() for table in tables.values())]
    return "\n\n".join([*parts, *([f"## Read first\n\n{warnings}"] if warnings else [])]) + "\n"


def _page(report: BenchmarkReport, tables: Mapping[str, Table], command: str) -> str:
    return render(
        "benchmark.html.j2",
        title=report.title,
        facts=_facts(report),
        warnings=_warnings(report),
        tables=tables,
        command=command,
    )


__all__ = ["BenchmarkReport", "to_json", "write_benchmark"]
