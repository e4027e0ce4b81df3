"""Summary of a comparison: one row a method, over its seeds, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from ppfr.auditing.card import Card, Finding, FurtherEstimate, LeakEstimate
from ppfr.evaluation.metrics.statistics import as_plain
from ppfr.experiments.comparison import MethodOutcome


@dataclass(frozen=True)
class MethodSummary:
    """The outcomes of one method over its seeds."""

    label: str
    outcomes: tuple[MethodOutcome, ...]

    @cached_property
    def figures(self) -> list[Mapping[str, Any]]:
        """Figures of the seeds that were measured here."""
        return [one.figures for one in self.outcomes if one.figures is not None]

    @cached_property
    def cards(self) -> list[Card]:
        """Cards of the seeds that were audited."""
        return [one.card for one in self.outcomes if one.card is not None]

    @cached_property
    def worst(self) -> list[Finding]:
        """The worst reliable attack on identities of each card that has one."""
        return [one for card in self.cards for one in card.findings if one.attack == card.worst and one.result]

    @property
    def failures(self) -> list[str]:
        """Why seeds failed."""
        return [f"seed {one.seed}: {one.failed}" for one in self.outcomes if one.failed]

    @property
    def measured(self) -> bool:
        """Whether there is any figure."""
        return bool(self.figures or self.cards)

    @property
    def method(self) -> str:
        """The method's registered name."""
        if self.figures:
            return str(self.figures[0]["method"])
        return self.cards[0].method.name if self.cards else self.label

    @property
    def title(self) -> str:
        """The method's title, with the label where it is not the method's name."""
        if not self.measured:
            return self.label
        title = str(self.figures[0]["title"]) if self.figures else self.cards[0].method.title
        plain = {self.method, *(f"{self.method}-seed{one.seed}" for one in self.outcomes)}
        return title if self.label in plain else f"{title} ({self.label})"

    def row(self) -> dict[str, Any]:
        """The method's row of `summary.json`, means over seeds; None where nothing was measured.

        Intervals are 95 % over people; of several seeds they cover those of all. `leak` is that of the worst attack as
        a share of what clear photos give beyond chance; `leak_rank1` and `ceiling_rank1` are the shares themselves.
        """
        verified = [one["verification"] for one in self.figures]
        if verified:
            accuracies = [(one["accuracy"], one["accuracy_low"], one["accuracy_high"]) for one in verified]
        else:
            known = [card.accuracy for card in self.cards if card.accuracy is not None]
            accuracies = [(one.value, one.low, one.high) for one in known]
        results = [finding.result for finding in self.worst if finding.result is not None]
        similar = [one for card in self.cards if (one := likeness(card, "SSIM")) is not None]
        costs = [one["cost"] for one in self.figures]
        sizes = [one["payload_bytes_raw"] for one in costs] or [card.method.payload_bytes for card in self.cards]
        values = {
            "method": self.method,
            "label": self.label,
            "title": self.title,
            "seeds": [one.seed for one in self.outcomes if not one.failed],
            "pair_accuracy": average(one[0] for one in accuracies),
            "accuracy_low": min((one[1] for one in accuracies), default=None),
            "accuracy_high": max((one[2] for one in accuracies), default=None),
            "accuracy_deviation": stdev(one[0] for one in accuracies) if len(accuracies) > 1 else None,
            "privacy": average(card.privacy for card in self.cards),
            "leak": average(leak_share(one, one.leak.value) for one in results),
            "leak_low": min((leak_share(one, one.leak.low) for one in results), default=None),
            "leak_high": max((leak_share(one, one.leak.high) for one in results), default=None),
            "leak_rank1": average(one.leak.value for one in results),
            "ceiling_rank1": average(one.ceiling.value for one in results),
            "worst": self.worst[0].attack if self.worst else None,
            "ssim": average(one.value for one in similar),
            "ssim_low": min((one.low for one in similar), default=None),
            "ssim_high": max((one.high for one in similar), default=None),
            "payload_bytes": sizes[0] if sizes else None,
            "client_ms": average(one["client_ms"] for one in costs),
            "server_ms": average(one["server_ms"] for one in costs),
            "train_seconds": average(one["train_seconds"] for one in self.figures),
            "verdict": self.cards[0].verdict if self.cards else None,
            "failed": self.failures,
        }
        plain: dict[str, Any] = as_plain(values)
        return plain


def summarise(outcomes: Sequence[MethodOutcome]) -> list[MethodSummary]:
    """Outcomes grouped by label, in the order in which labels first occur."""
    labels = dict.fromkeys(outcome.label for outcome in outcomes)
    return [MethodSummary(label, tuple(one for one in outcomes if one.label == label)) for label in labels]


def summary_rows(summaries: Sequence[MethodSummary]) -> list[dict[str, Any]]:
    """The rows of all methods, with `pareto`: whether a method is on the Pareto front.

    It is when no other one is at least as good in accuracy, leak and payload bytes and better in one of them. Methods
    whose accuracy or leak is unknown are not compared.
    """
    rows = [summary.row() for summary in summaries]
    for row in rows:
        known = row["pair_accuracy"] is not None and row["leak"] is not None
        row["pareto"] = known and not any(dominates(other, row) for other in rows)
    return rows


def dominates(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether `one` is at least as good as `two` in accuracy, leak and bytes, and better in one of them."""
    if one["pair_accuracy"] is None or one["leak"] is None:
        return False
    first, second = ((row["pair_accuracy"], -row["leak"], -row["payload_bytes"]) for row in (one, two))
    return first != second and all(a >= b for a, b in zip(first, second, strict=True))


def leak_share(result: LeakEstimate, value: float) -> float:
    """Where a leak lies between chance (0) and clear photos (1), within [0,1]."""
    return min(1.0, max(0.0, (value - result.chance) / (result.ceiling.value - result.chance)))


def likeness(card: Card, measure: str) -> FurtherEstimate | None:
    """The similarity of recovered images to photos, "SSIM" or "PSNR", of the attack whose mean is largest."""
    found = [finding.further[measure] for finding in card.findings if measure in finding.further]
    return max(found, key=lambda one: one.value, default=None)


def average(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


__all__ = ["MethodSummary", "average", "dominates", "leak_share", "likeness", "summarise", "summary_rows"]
