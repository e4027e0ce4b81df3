"""`ppfr audit`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ppfr.attacks.base import attack_names
from ppfr.auditing.audit import audit_run
from ppfr.auditing.card import Card, Finding
from ppfr.auditing.evidence import refuse_repository
from ppfr.auditing.profiles import PROFILES
from ppfr.cli.app import DeviceOption, PayloadSettings, PreprocessingOption, SeedOption, app, out, recogniser
from ppfr.cli.compare import print_files, print_summary
from ppfr.data.synthetic.faces import is_synthetic
from ppfr.experiments.comparison import SETTINGS_FILE, card_outcomes
from ppfr.experiments.summary import summarise, summary_rows
from ppfr.recipes.recipe import parse_overrides
from ppfr.reports.cards import write_audit
from ppfr.reports.report import PAGE_FILE, SUMMARY_FILE, write_report
from ppfr.util.errors import AttackError


@app.command("audit")
def audit_command(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run folder to audit; with --compare cards, or the folders that hold them."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Aligned faces, as for train: the attacker has photos of its training people, its test people are "
            "attacked."
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="Public recogniser that identifies recovered images: neither the run's teacher nor --recogniser. "
            "Without one identification is not measured."
        ),
    ] = None,
    own: Annotated[
        Path | None,
        typer.Option(
            "--recogniser", help="The attacker's own public recogniser; attacks that link or learn embeddings need one."
        ),
    ] = None,
    profile: Annotated[str, typer.Option(help=f"How thorough: {', '.join(PROFILES)}.")] = "fast",
    names: Annotated[
        str | None, typer.Option("--attacks", help="Only these attacks, separated by commas; by default all.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for card.json and card.html; outside of any repository: it shows faces."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare the cards of several audits instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card, or the comparison, as JSON.")] = False,
    settings: PayloadSettings = None,
    seed: SeedOption = 0,
    judge_preprocessing: PreprocessingOption = None,
    recogniser_preprocessing: PreprocessingOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Attack a method's payloads with every attack, and write a card with the leaks and a verdict.

    ppfr audit RUN --data DIR --judge judge.onnx --recogniser teacher.ckpt --out CARDS/partialface

    ppfr audit --compare CARDS/partialface CARDS/duetface --out CARDS

    Each attack states what its attacker sees, knows and has, and must also succeed on a weakened target (its control).
    The score is that of the worst attack: 0 where it finds as many people as in clear photos, 1 where it only guesses.
    An attack that failed is no proof of privacy. --compare writes the same report as ppfr compare, from cards.
    """
    if compare:
        _compare(runs, out_dir, as_json)
        return
    if len(runs) != 1:
        raise AttackError(f"{len(runs)} runs given; audit one at a time, and put their cards together with --compare")
    if data is None:
        raise AttackError("an audit needs --data (aligned faces)")
    folder = runs[0] / "audit" if out_dir is None else out_dir
    refuse_repository(folder, synthetic=is_synthetic(data))
    found = audit_run(
        runs[0],
        data,
        judge=recogniser(judge, judge_preprocessing),
        recogniser=recogniser(own, recogniser_preprocessing),
        profile=profile,
        with_attacks=_chosen(names),
        seed=seed,
        device=device,
        settings=parse_overrides(settings) if settings else None,
    )
    files = write_audit(found, folder, command=shlex.join(["ppfr", *sys.argv[1:]]))
    if as_json:
        print(found.card.to_json(), end="")
        return
    _print(found.card)
    out.print("\n".join(f"Written: {file}" for file in files), soft_wrap=True, highlight=False, markup=False)


def _chosen(names: str | None) -> list[str] | None:
    if names is None:
        return None
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise AttackError(f"--attacks names none; known: {', '.join(attack_names())}")
    return chosen


def _print(card: Card) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("attack", "found (95 %)", "clear", "chance", "score", "control", "counts"):
        table.add_column(heading, no_wrap=True)
    for finding in card.findings:
        table.add_row(*_row(finding))
    out.print(table)
    for finding in card.findings:
        if finding.threat is not None:
            out.print(f"{finding.attack}: {finding.threat.text}", soft_wrap=True, highlight=False, markup=False)
        if finding.reason:
            out.print(f"{finding.attack}: {finding.reason}", soft_wrap=True, highlight=False, markup=False)
    for cut in card.cut:
        out.print(f"cut: {cut}", soft_wrap=True, highlight=False, markup=False)
    out.print(card.verdict, style="bold", soft_wrap=True, highlight=False, markup=False)


def _row(finding: Finding) -> list[str]:
    result, control = finding.result, finding.control
    if result is None:
        state = "not run" if finding.threat is None else "no judge"
        return [finding.attack, "-", "-", "-", "-", "-", state]
    return [
        finding.attack,
        f"{result.leak.value:.0%} ({100 * result.leak.low:.0f}-{100 * result.leak.high:.0f})",
        f"{result.ceiling.value:.0%}",
        f"{result.chance:.0%}",
        f"{result.privacy:.2f}",
        "-" if control is None else f"{control.result.leak.value:.0%}",
        _counts(finding),
    ]


def _counts(finding: Finding) -> str:
    if finding.status != "reliable":
        return "no"
    return "yes" if finding.finds_people else "no identity"


def _compare(cards: list[Path], folder: Path | None, as_json: bool) -> None:
    if folder is None:
        raise AttackError(f"--compare needs --out, a folder for {PAGE_FILE} and {SUMMARY_FILE}")
    if (folder / SETTINGS_FILE).exists():
        raise AttackError(f"{folder} holds the report of a comparison, which would be replaced; choose another --out")
    outcomes = card_outcomes(cards)
    synthetic = all(one.card.faces.synthetic for one in outcomes if one.card is not None)
    refuse_repository(folder, synthetic=synthetic or not any(one.evidence for one in outcomes))
    write_report(outcomes, folder, command=shlex.join(["ppfr", *sys.argv[1:]]))
    summaries = summarise(outcomes)
    if as_json:
        print(json.dumps(summary_rows(summaries), indent=2, allow_nan=False))
        return
    print_summary(summaries)
    print_files(folder)
