"""Numbers, intervals and threat models in print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

THIN = "\N{NARROW NO-BREAK SPACE}"
MISSING = "—"
# shown on every page and plot of drawn faces
SYNTHETIC_MARK = "synthetic faces"


class Cell(NamedTuple):
    """A figure and its 95 % interval, in print; the interval may be empty."""

    value: str
    interval: str = ""


class Bounds(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def number(values: Mapping[str, Any] | None, key: str) -> float | None:
    """A finite number of a mapping, or None where it is absent or was not measured."""
    value = None if values is None else values.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def bounds(values: Mapping[str, Any] | None, key: str) -> Bounds | None:
    """The interval of a figure: `KEY_low` and `KEY_high`, or `KEY_interval`; None where it is absent."""
    if values is None:
        return None
    low, high = number(values, f"{key}_low"), number(values, f"{key}_high")
    if low is None or high is None:
        interval = values.get(f"{key}_interval")
        if not interval:
            return None
        low, high = float(interval[0]), float(interval[1])
    return Bounds(low, high)


def percent(share: float | None, digits: int = 1) -> str:
    """0.915 as `91.5 %`."""
    return MISSING if share is None else f"{100 * share:.{digits}f}{THIN}%"


def percent_range(interval: Bounds | None, digits: int = 1) -> str:
    """An interval of shares as `90.1–92.8 %`, or nothing."""
    if interval is None:
        return ""
    return f"{100 * interval.low:.{digits}f}–{100 * interval.high:.{digits}f}{THIN}%"


def plain(value: float | None, digits: int, unit: str = "") -> str:
    """A number with its unit."""
    return MISSING if value is None else f"{value:.{digits}f}{THIN + unit if unit else ''}"


def plain_range(interval: Bounds | None, digits: int, unit: str = "") -> str:
    """An interval of numbers with their unit, or nothing."""
    if interval is None:
        return ""
    between = " to " if interval.low < 0 else "–"
    return f"{interval.low:.{digits}f}{between}{interval.high:.{digits}f}{THIN + unit if unit else ''}"


def scaled(value: float | None, unit: str = "", *, short: bool = False) -> str:
    """1354752 with unit B as `1.35 MB`: three digits and a decimal prefix; with `short` 1000000 is `1 MB`."""
    if value is None:
        return MISSING
    size = float(value)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(size) < 999.5 or prefix == "T":
            break
        size /= 1000
    digits = 0 if not prefix or abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
    shown = f"{size:.3g}" if short else f"{size:.{digits}f}"
    return f"{shown}{THIN}{prefix}{unit}".rstrip(THIN)


def duration(seconds: float | None) -> str:
    """725 as `12 min 5 s`."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}{THIN}h {minutes}{THIN}min"
    return f"{minutes}{THIN}min {rest}{THIN}s" if minutes else f"{rest}{THIN}s"


class ThreatLike(Protocol):
    """The parts of a card's threat model."""

    @property
    def sees(self) -> str: ...
    @property
    def knows(self) -> str: ...
    @property
    def has(self) -> Sequence[str]: ...
    @property
    def pairs(self) -> int: ...


_SEES = {
    "one payload": "gets hold of one payload, from the wire, a log or the server",
    "several payloads of one image": "gets hold of several payloads of one image, as when a client sends it again",
    "several payloads of one person": "gets hold of several payloads of one person, as a server does over time",
    "stored templates": "gets hold of the server's stored templates, as after a break-in",
}
_KNOWS = {
    "nothing": "knows nothing of the method",
    "the method": "knows which method runs, from its paper",
    "the method's public parameters": "holds the client program and its public weights, as all who install it do",
    "the deployment's secrets": "knows the deployment's secrets too, as its operator does",
}
_HAS = {
    "public faces": "photos of other people from the internet",
    "query access to the client": "a client of their own that protects any photo they feed it",
}


def threat_words(threat: ThreatLike) -> str:
    """A threat model in two sentences for readers who do not know the field."""
    held = [
        f"{threat.pairs} photos of others together with their payloads"
        if name.startswith("payload")
        else _HAS.get(name, name)
        for name in threat.has
    ]
    sees = _SEES.get(threat.sees, f"sees {threat.sees}")
    knows = _KNOWS.get(threat.knows, f"knows {threat.knows}")
    return f"The attacker {sees}, and {knows}. They have {' and '.join(held) or 'nothing else'}."
