"""What the report's table tells of each method, each measure with its meaning in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ppfr.reports.wording import (
    MISSING,
    THIN,
    bounds,
    duration,
    milliseconds,
    number,
    percent,
    percent_range,
    plain,
    plain_range,
    scaled,
)

UP, DOWN = "↑", "↓"


class Measured(Protocol):
    """What a measure reads: the parts of a `MethodResult`."""

    row: dict[str, Any]
    verification: dict[str, Any]
    cost: dict[str, Any]
    leakage: dict[str, Any] | None


class Cell(NamedTuple):
    """A figure and its 95 % interval, in print; the interval may be empty."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Measure:
    """A line of the table: its name, which way is better, what it means, and how to read it off a result."""

    name: str
    better: str
    meaning: str
    read: Callable[[Measured], Cell]


@dataclass(frozen=True)
class Group:
    """Measures that belong together."""

    name: str
    measures: tuple[Measure, ...]


def _by_target(values: Mapping[Any, Any] | None, target: float) -> Any:
    """The entry of a FAR target, whose key JSON may have turned into text."""
    return next((value for key, value in (values or {}).items() if abs(float(key) - target) < 1e-9), None)


def _tar(target: float) -> Callable[[Measured], Cell]:
    def read(result: Measured) -> Cell:
        found = _by_target(result.verification.get("tar"), target)
        if found is None:
            return Cell(MISSING)
        if any(abs(float(far) - target) < 1e-9 for far in result.verification.get("unresolved") or ()):
            return Cell(percent(found), "too few pairs to resolve")
        interval = _by_target(result.verification.get("tar_interval"), target)
        return Cell(percent(found), percent_range(bounds({"tar_interval": interval}, "tar")))

    return read


def _accuracy(result: Measured) -> Cell:
    return Cell(percent(number(result.row, "pair_accuracy")), percent_range(bounds(result.row, "accuracy")))


def _auc(result: Measured) -> Cell:
    return Cell(plain(number(result.verification, "auc"), 3), plain_range(bounds(result.verification, "auc"), 3))


def _eer(result: Measured) -> Cell:
    return Cell(percent(number(result.verification, "eer")), percent_range(bounds(result.verification, "eer")))


def _rank(name: str, key: str) -> Callable[[Measured], Cell]:
    def read(result: Measured) -> Cell:
        return Cell(percent(number(result.row, name)), percent_range(bounds(result.leakage, key)))

    return read


def _score(result: Measured) -> Cell:
    return Cell(plain(number(result.leakage, "privacy"), 2))


def _ssim(result: Measured) -> Cell:
    return Cell(plain(number(result.row, "ssim"), 2), plain_range(bounds(result.leakage, "ssim"), 2))


def _psnr(result: Measured) -> Cell:
    return Cell(plain(number(result.leakage, "psnr"), 1, "dB"), plain_range(bounds(result.leakage, "psnr"), 1, "dB"))


def _cost(key: str, unit: str) -> Callable[[Measured], Cell]:
    return lambda result: Cell(scaled(number(result.cost, key), unit))


RECOGNITION = Group(
    "Recognition",
    (
        Measure(
            "Pair accuracy",
            UP,
            "Share of photo pairs judged correctly as one person or two, at a threshold chosen on other pairs "
            f"(10 folds); guessing gives 50{THIN}%.",
            _accuracy,
        ),
        *(
            Measure(
                f"TAR at FAR {label}",
                UP,
                "Share of same-person pairs accepted by a threshold that lets through at most this share of pairs of "
                "different people."
                if first
                else "The same at a stricter threshold.",
                _tar(target),
            )
            for target, label, first in (
                (0.1, f"10{THIN}%", True),
                (0.01, f"1{THIN}%", False),
                (0.001, f"0.1{THIN}%", False),
            )
        ),
        Measure(
            "AUC",
            UP,
            "Chance that a same-person pair looks more alike than a pair of different people; guessing gives 0.5.",
            _auc,
        ),
        Measure(
            "EER",
            DOWN,
            "Error at the threshold where strangers accepted and owners rejected are equally frequent.",
            _eer,
        ),
    ),
)

LEAKAGE = Group(
    "Leakage",
    (
        Measure(
            "Re-identified (leak, Rank-1)",
            DOWN,
            "Share of people whose own other photos are the best match, among all people searched, for what the "
            "attack made of their payload.",
            _rank("leak_rank1", "rank1"),
        ),
        Measure(
            "… from clear photos (ceiling)",
            "",
            "The same search with the photo itself: what a payload that hides nothing would give away.",
            _rank("ceiling_rank1", "ceiling_rank1"),
        ),
        Measure(
            "… by guessing (chance)",
            "",
            "The same search with an image that says nothing: one in as many people as are searched.",
            lambda result: Cell(percent(number(result.leakage, "chance"))),
        ),
        Measure(
            "Privacy score, this attack",
            UP,
            "Where the leak lies between the ceiling (0) and chance (1); another attack can only lower it.",
            _score,
        ),
        Measure(
            "SSIM",
            DOWN,
            "Structural likeness of recovered image and photo, 1 when equal; a low value is no proof of privacy.",
            _ssim,
        ),
        Measure(
            "PSNR",
            DOWN,
            "Pixel-wise closeness of the two on a logarithmic scale; above some 30 dB differences are hard to see.",
            _psnr,
        ),
    ),
)

COST = Group(
    "Cost of one query",
    (
        Measure(
            "Payload, raw",
            DOWN,
            "Bytes of the tensors that leave the client for one image, as they are.",
            _cost("payload_bytes_raw", "B"),
        ),
        Measure(
            "Payload, as sent",
            DOWN,
            "Bytes of the message on the wire (safetensors, deflated), a mean over images.",
            _cost("payload_bytes_sent", "B"),
        ),
        Measure(
            "Client parameters",
            DOWN,
            "Learned numbers shipped to the device; a fixed transform has none.",
            _cost("client_parameters", ""),
        ),
        Measure(
            "Server parameters",
            DOWN,
            "Learned numbers of the recogniser that reads payloads.",
            _cost("server_parameters", ""),
        ),
        Measure("Client multiply-adds", DOWN, "Arithmetic on the device for one image.", _cost("client_macs", "")),
        Measure("Server multiply-adds", DOWN, "Arithmetic on the server for one payload.", _cost("server_macs", "")),
        Measure(
            "Client time",
            DOWN,
            "Median time to protect one image.",
            lambda result: Cell(milliseconds(number(result.row, "client_ms"))),
        ),
        Measure(
            "Server time",
            DOWN,
            "Median time to embed one payload.",
            lambda result: Cell(milliseconds(number(result.row, "server_ms"))),
        ),
        Measure(
            "Training",
            DOWN,
            "Wall-clock time of the training run.",
            lambda result: Cell(duration(number(result.row, "train_seconds"))),
        ),
    ),
)

GROUPS = (RECOGNITION, LEAKAGE, COST)
