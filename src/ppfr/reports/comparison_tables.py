"""Tables of a comparison: accuracy, leak and cost, heterogeneous protocols, and published results beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ppfr.auditing.card import NO_JUDGE
from ppfr.experiments.summary import MethodSummary, leak_share, likeness
from ppfr.reports.published import published_rows, published_tables
from ppfr.reports.tables import Column, Quantity, Row, Table, percent_of

_ONE_SEED = "One seed: no deviation is known, and small differences mean nothing."
_FARS = ((0.1, "10 %"), (0.01, "1 %"), (0.001, "0.1 %"))
_ACCURACY = (
    Column(
        "pair accuracy, %",
        2,
        "share of photo pairs judged correctly as one person or two, at a threshold chosen on other pairs (10 folds); "
        "guessing gives 50 %",
    ),
    Column("95 % interval from, %", 1, "lower end of the interval over people"),
    Column("to, %", 1, "upper end"),
    *(
        Column(f"TAR at FAR {far}, %", 1, f"share of same-person pairs accepted where {far} of other pairs are")
        for _, far in _FARS
    ),
    Column("AUC", 3, "chance that a same-person pair is more similar than a pair of two people; guessing gives 0.5"),
    Column("EER, %", 2, "error where as many strangers are accepted as owners are rejected"),
)
_LEAK = (
    Column("privacy score", 2, "0: as the clear photo, 1: as guessing, by the worst reliable attack on identities"),
    Column("worst leak, % of clear photos'", 1, "the same, from chance (0 %) to what clear photos give (100 %)"),
    Column("people found, %", 1, "Rank-1: their own other photos are the best match for what the attack obtained"),
    Column("from clear photos, %", 1, "the same search with the photo itself"),
    Column("by guessing, %", 1, "the same search with an image that shows nothing"),
    Column("SSIM", 2, "structural similarity of recovered image and photo, 1 when equal; low is no proof of privacy"),
    Column("PSNR, dB", 1, "pixel-wise similarity of the two; above about 30 dB differences are hard to see"),
    Column("attacks counted", 0, "attacks that succeeded on a weakened target"),
)
_COST = (
    Column("payload raw, kB", 1, "tensors that leave the client for one image, as they are"),
    Column("payload sent, kB", 1, "the message on the wire (safetensors, deflated), mean over images"),
    Column("client, ms", 2, "median time to protect one image"),
    Column("server, ms", 2, "median time to embed one payload"),
    Column("client parameters, M", 2, "learned numbers on the device; a fixed transform has none"),
    Column("server parameters, M", 2, "learned numbers of the recogniser that reads payloads"),
    Column("client multiply-adds, M", 1, "arithmetic on the device for one image"),
    Column("server multiply-adds, M", 1, "arithmetic on the server for one payload"),
    Column("training, s", 0, "wall-clock time of the training run"),
)


def comparison_tables(summaries: Sequence[MethodSummary]) -> dict[str, Table]:
    """All tables by name: accuracy, cost, leak, published, and one for each heterogeneous protocol measured."""
    measured = [summary for summary in summaries if summary.figures]
    audited = [summary for summary in summaries if summary.cards]
    tables = {}
    if measured or not audited:
        tables = {"accuracy": _accuracy(measured), "cost": _cost(measured)}
    if audited:
        tables["leak"] = _leak(audited)
    for table in published_tables():
        protocol = table.get("protocol")
        if protocol is None:
            tables["published"] = published_as_table(table, {summary.title for summary in summaries})
        elif any(_protocol(figures, protocol) for summary in measured for figures in summary.figures):
            tables[protocol] = _heterogeneous(measured, table, protocol)
    return tables


def published_as_table(table: Mapping[str, Any], ours: set[str]) -> Table:
    """A published table; rows of methods in `ours` say that they were measured here, too."""
    columns = tuple(Column(f"{name}, %", table["digits"]) for name in table["columns"])
    rows = tuple(
        replace(row, note="measured here, too") if row.name in ours else row
        for row in published_rows(table, table["columns"])
    )
    note = "Other data, other networks: beside ours, not comparable with ours number by number."
    return Table(f"Published: {table['title']}", columns, rows, (table["training"] + ".", table["note"], note))


def _seeds(summaries: Sequence[MethodSummary]) -> tuple[str, ...]:
    """How many seeds the means and deviations are over."""
    counts = [max(len(summary.figures), len(summary.cards)) for summary in summaries]
    if not counts:
        return ()
    if max(counts) == 1:
        return (_ONE_SEED,)
    note = f"Mean ± sample deviation over {max(counts)} seeds."
    single = [summary.title for summary, count in zip(summaries, counts, strict=True) if count == 1]
    return (note, f"One seed only: {', '.join(single)}.") if single else (note,)


def _accuracy(summaries: Sequence[MethodSummary]) -> Table:
    def row(summary: MethodSummary) -> Row:
        verified = [figures["verification"] for figures in summary.figures]
        values = (
            _over(verified, lambda one: percent_of(one["accuracy"])),
            Quantity(min(100 * one["accuracy_low"] for one in verified)),
            Quantity(max(100 * one["accuracy_high"] for one in verified)),
            *(
                _over(
                    verified,
                    lambda one, far=far: percent_of(_at(one.get("tar"), far)),
                    lambda one, far=far: _percents(_at(one.get("tar_interval"), far)),
                )
                for far, _ in _FARS
            ),
            _over(verified, lambda one: one.get("auc"), lambda one: one.get("auc_interval")),
            _over(verified, lambda one: percent_of(one.get("eer")), lambda one: _percents(one.get("eer_interval"))),
        )
        notes = list(summary.figures[0]["remarks"])
        unresolved = [name for far, name in _FARS if far in verified[0].get("unresolved", ())]
        if unresolved:
            notes.append(f"Too few pairs to resolve FAR {' and '.join(unresolved)}.")
        return Row(summary.title, values, note=" ".join(notes))

    title = "Accuracy on people who are not in training"
    basis: tuple[str, ...] = ()
    if summaries and "genuine" in (first := summaries[0].figures[0]["verification"]):
        pairs = f"{first['genuine']:,} same-person and {first['impostor']:,} different-person pairs"
        basis = (f"{pairs}; intervals: {first['interval']}.",)
    return Table(title, _ACCURACY, tuple(map(row, summaries)), (*_seeds(summaries), *basis))


def _leak(summaries: Sequence[MethodSummary]) -> Table:
    def row(summary: MethodSummary) -> Row:
        cards, results = summary.cards, [one.result for one in summary.worst if one.result is not None]
        similar = ([likeness(card, measure) for card in cards] for measure in ("SSIM", "PSNR"))
        values = (
            Quantity.of([card.privacy for card in cards]),
            _over(
                results,
                lambda one: 100 * leak_share(one, one.leak.value),
                lambda one: [100 * leak_share(one, edge) for edge in (one.leak.low, one.leak.high)],
            ),
            *(
                _over(
                    results,
                    lambda one, part=part: 100 * getattr(one, part).value,
                    lambda one, part=part: _percents((getattr(one, part).low, getattr(one, part).high)),
                )
                for part in ("leak", "ceiling")
            ),
            _over(results, lambda one: 100 * one.chance),
            *(
                _over([one for one in found if one is not None], lambda one: one.value, lambda one: (one.low, one.high))
                for found in similar
            ),
            _over(cards, lambda card: sum(one.status == "reliable" for one in card.findings)),
        )
        notes = sorted({finding.attack for finding in summary.worst})
        if any(finding.status == "no judge" for card in cards for finding in card.findings):
            notes.append(NO_JUDGE)
        return Row(summary.title, values, note="; ".join(notes))

    people = summaries[0].cards[0].faces.people
    basis = f"One query from each of {people} people; SSIM and PSNR are those of the most similar recovery."
    return Table("Leak of the worst attack", _LEAK, tuple(map(row, summaries)), (basis, *_seeds(summaries)))


def _cost(summaries: Sequence[MethodSummary]) -> Table:
    def row(summary: MethodSummary) -> Row:
        costs = [figures["cost"] for figures in summary.figures]
        first = costs[0]
        values = (
            *(Quantity(first[f"payload_bytes_{form}"] / 1e3) for form in ("raw", "sent")),
            *(_over(costs, lambda one, side=side: one[f"{side}_ms"]) for side in ("client", "server")),
            *(Quantity(first[f"{side}_parameters"] / 1e6) for side in ("client", "server")),
            *(Quantity(first[f"{side}_macs"] / 1e6) for side in ("client", "server")),
            Quantity.of([figures["train_seconds"] for figures in summary.figures]),
        )
        return Row(summary.title, values)

    cost = summaries[0].figures[0]["cost"] if summaries else {"device": "-", "threads": 0}
    basis = f"One image at a time on {cost['device']}, {cost['threads']} threads."
    return Table("Cost of a query", _COST, tuple(map(row, summaries)), (basis,))


def _heterogeneous(summaries: Sequence[MethodSummary], published: Mapping[str, Any], protocol: str) -> Table:
    columns = tuple(Column(name, published["digits"]) for name in ("Rank-1", "VR@FAR=1%", "VR@FAR=0.1%", "AUC", "EER"))
    names = [column.name for column in columns]
    rows = []
    simulated = False
    for summary in summaries:
        known = [one for figures in summary.figures if (one := _protocol(figures, protocol)) is not None]
        if not known:
            continue
        simulated |= any(one["simulated"] for one in known)
        mark = "simulated, " if simulated else ""
        rows.append(Row(f"{mark}{summary.title}", tuple(_protocol_rate(known, name) for name in names)))
    rows += published_rows(published, names)
    note = "SIMULATED: the second modality was computed from photos; our rows say nothing about real sensors."
    spread = "Deviations of ours are over folds, or over seeds where there are several."
    notes = (*((note,) if simulated else ()), published["note"], spread)
    return Table(published["title"], columns, tuple(rows), notes)


def _protocol_rate(known: Sequence[Mapping[str, Any]], name: str) -> Quantity:
    """A rate with its deviation over folds for one seed, over seeds for several."""
    if len(known) > 1:
        return _over(known, lambda one: percent_of(one["mean"].get(name)))
    (only,) = known
    return Quantity(percent_of(only["mean"].get(name)), percent_of((only["deviation"] or {}).get(name)))


def _protocol(figures: Mapping[str, Any], protocol: str) -> Mapping[str, Any] | None:
    return next((one for one in figures.get("heterogeneous", ()) if one["protocol"] == protocol), None)


def _over(
    items: Sequence[Any],
    read: Callable[..., float | None],
    interval: Callable[..., Sequence[float] | None] = lambda item: None,
) -> Quantity:
    """Mean and deviation over seeds; of one seed the value with its interval."""
    found = Quantity.of([read(item) for item in items])
    edges = interval(items[0]) if len(items) == 1 else None
    return found if not edges else replace(found, interval=(edges[0], edges[1]))


def _percents(shares: Sequence[float] | None) -> Sequence[float] | None:
    return None if shares is None else [100 * share for share in shares]


def _at(rates: Mapping[str, Any] | None, far: float) -> Any:
    """The entry of a FAR target, whose key is text in JSON; None where it is absent."""
    return next((rate for key, rate in (rates or {}).items() if float(key) == far), None)


__all__ = ["comparison_tables", "published_as_table"]
