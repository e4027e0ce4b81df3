"""Plots of accuracy against what leaks and what travels, as SVG to put into a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ppfr.evaluation.tradeoff import Tradeoff
from ppfr.reports.wording import Bounds, percent, percent_range, scaled

# colours that keep apart on white and on black and for colour-blind eyes (after Okabe and Ito), each with its own mark
COLOURS = ("#1b7fc4", "#d9720d", "#149a72", "#b3589f", "#b59a00", "#4a5fd0", "#cf3f3f", "#58889c")
MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("p", "⬟"), ("X", "✖"))

# stand-ins that the page's own colours replace, so that the plot follows light and dark
_INK, _FAINT = "#010203", "#040506"
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ppfr",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True)
class PlotPoint:
    """One method in the plots; shares in [0, 1], None where not measured."""

    title: str
    style: int
    accuracy: float | None
    accuracy_bounds: Bounds | None = None
    leak: float | None = None
    leak_bounds: Bounds | None = None
    ssim: float | None = None
    ssim_bounds: Bounds | None = None
    payload_bytes: float | None = None

    @property
    def colour(self) -> str:
        """The colour of this method throughout the report."""
        return COLOURS[self.style % len(COLOURS)]

    @property
    def mark(self) -> str:
        """The mark of this method as a character."""
        return MARKS[self.style % len(MARKS)][1]


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its interval, between guessing and clear photos; `faint` for one that does not count."""

    title: str
    share: float
    bounds: Bounds | None
    chance: float
    ceiling: float
    faint: bool = False


def leak_bars(bars: Sequence[Bar], mark: str = "") -> str:
    """A bar for each attack's leak with its 95 % interval, between ticks for chance and for clear photos."""
    if not bars:
        return ""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for index, bar in enumerate(bars):
            place = len(bars) - 1 - index
            (drawn,) = axes.barh(
                [place], [bar.share], height=0.5, color="none" if bar.faint else COLOURS[0], edgecolor=COLOURS[0]
            )
            drawn.set_gid(f"bars-{index}")
            if bar.faint:
                drawn.set_linestyle((0, (2, 2)))
            if bar.bounds is not None:
                low, high = min(bar.bounds.low, bar.share), max(bar.bounds.high, bar.share)
                axes.plot([low, high], [place, place], color=_INK, linewidth=1.4)
            for at, style in ((bar.chance, (0, (1, 1.5))), (bar.ceiling, "solid")):
                axes.plot([at, at], [place - 0.42, place + 0.42], color=COLOURS[1], linewidth=1.8, linestyle=style)
        axes.set_yticks(range(len(bars)), [_shortened(bar.title) for bar in reversed(bars)])
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlabel("people found; solid tick: from clear photos, dotted tick: by guessing")
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3)
        if mark:
            axes.set_title(mark, loc="right", fontsize=9)
        svg = _as_svg(figure)
    texts = [
        _tidy(
            f"{bar.title}{' (unreliable)' if bar.faint else ''}: {percent(bar.share)} "
            f"{_in_brackets(percent_range(bar.bounds))}, clear photos {percent(bar.ceiling)}, "
            f"guessing {percent(bar.chance)}"
        )
        for bar in bars
    ]
    return _for_page(svg, "bars", "What each attack gets", texts)


def _shortened(title: str) -> str:
    return title if len(title) <= 34 else f"{title[:33]}…"


def _as_svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def leakage_plot(points: Sequence[PlotPoint], mark: str = "") -> str:
    """Pair accuracy over the worst leak as a share of what clear photos give, with 95 % intervals and Pareto front.

    `mark` is written into the plot.
    """

    def finish(axes: Axes) -> None:
        axes.set_xlim(-0.04, 1.04)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlabel("worst leak, as a share of what clear photos give  (left is better)")
        _draw_front(axes, [(point.leak, point.accuracy) for point in points])

    return _plot(
        "leakage",
        "Accuracy against leakage",
        points,
        lambda point: point.leak,
        lambda point: point.leak_bounds,
        lambda point: f"leak {percent(point.leak)} {_in_brackets(percent_range(point.leak_bounds))}",
        finish,
        mark,
    )


def likeness_plot(points: Sequence[PlotPoint], mark: str = "") -> str:
    """Pair accuracy over the SSIM of recovered images, for experiments without a judge."""

    def finish(axes: Axes) -> None:
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.04)
        axes.set_xlabel("SSIM of recovered images with the photos  (left is better)")

    return _plot(
        "likeness",
        "Accuracy against likeness",
        points,
        lambda point: point.ssim,
        lambda point: point.ssim_bounds,
        lambda point: f"SSIM {point.ssim:.2f}",
        finish,
        mark,
    )


def bytes_plot(points: Sequence[PlotPoint], mark: str = "") -> str:
    """Pair accuracy over the bytes that leave the client for one image, with the Pareto front."""

    def finish(axes: Axes) -> None:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # at least a factor of ten in view, so that neighbours do not look like opposites
        room = max(1.3, (10 * low / high) ** 0.5)
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value, "B", short=True)))
        axes.set_xlabel("payload of one image, uncompressed  (left is better)")
        limits = axes.get_xlim()
        _draw_front(axes, [(point.payload_bytes or None, point.accuracy) for point in points])
        axes.set_xlim(limits)

    return _plot(
        "bytes",
        "Accuracy against payload size",
        points,
        lambda point: point.payload_bytes or None,
        lambda point: None,
        lambda point: scaled(point.payload_bytes, "B"),
        finish,
        mark,
    )


def save_tradeoff_plot(result: Tradeoff, path: Path, *, loss: float, title: str) -> None:
    """Write a PNG of pair accuracy over bytes as sent; a line for each value of the first setting.

    The best setting, which loses less than `loss` to the first, is circled.
    """
    best, (first, *others) = result.best(loss), list(result.points[0].settings)
    with mpl.rc_context({"font.size": 9.5, "axes.linewidth": 0.8}):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=144)
        axes = figure.subplots()
        for style, value in enumerate(dict.fromkeys(point.settings[first] for point in result.points)):
            line = sorted((p for p in result.points if p.settings[first] == value), key=lambda p: p.sent_bytes)
            sizes, shares = [p.sent_bytes / 1000 for p in line], [100 * p.accuracy for p in line]
            mark, colour = MARKS[style % len(MARKS)][0], COLOURS[style % len(COLOURS)]
            axes.plot(sizes, shares, marker=mark, color=colour, label=f"{first} {value}")
            for point, x, y in zip(line, sizes, shares, strict=True):
                label = " ".join(
                    f"{point.settings[name]:g}" for name in others if not isinstance(point.settings[name], str)
                )
                axes.annotate(
                    label, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=6.5, color=colour
                )
        axes.axhline(100 * (result.points[0].accuracy - loss), color="#888888", linewidth=0.8, linestyle="--")
        axes.plot([best.sent_bytes / 1000], [100 * best.accuracy], "o", markersize=15, fillstyle="none", color="black")
        axes.set_xscale("log")
        axes.set_xlabel("payload of one image as sent, kB  (left is better)")
        axes.set_ylabel("pairs judged correctly, %  (up is better)")
        axes.set_title(f"{title}: labels are {' and '.join(others) or first}", loc="left", fontsize=10)
        axes.grid(True, linewidth=0.4, which="both")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="png", metadata={"Software": None})


def _plot(
    name: str,
    title: str,
    points: Sequence[PlotPoint],
    where: Callable[[PlotPoint], float | None],
    interval: Callable[[PlotPoint], Bounds | None],
    describe: Callable[[PlotPoint], str],
    finish: Callable[[Axes], None],
    mark: str,
) -> str:
    """One plot; an empty string where no point has both coordinates."""
    shown = [point for point in points if point.accuracy is not None and where(point) is not None]
    if not shown:
        return ""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.4, 3.9), layout="constrained")
        axes = figure.subplots()
        for index, point in enumerate(shown):
            _draw_point(axes, point, where(point), interval(point), f"{name}-{index}")
        finish(axes)
        axes.set_ylim(*_accuracy_limits(shown))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_ylabel("pairs judged correctly  (up is better)")
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        if mark:
            axes.set_title(mark, loc="right", fontsize=9)
        svg = _as_svg(figure)
    texts = [
        f"{point.title}: {percent(point.accuracy)} of pairs "
        f"{_in_brackets(percent_range(point.accuracy_bounds))}, {describe(point)}"
        for point in shown
    ]
    return _for_page(svg, name, f"{title}{' – ' + mark if mark else ''}", [_tidy(text) for text in texts])


def _draw_front(axes: Axes, places: Sequence[tuple[float | None, float | None]]) -> None:
    """A stair through the places that none other beats: no further right and no lower."""
    known = [(x, y) for x, y in places if x is not None and y is not None]
    best = [(x, y) for x, y in known if not any(_beats(other, (x, y)) for other in known)]
    if best:
        across, up = (list(values) for values in zip(*sorted(best), strict=True))
        # from below the plot up to the first, and past its right edge from the last
        across, up = [across[0], *across, 10 * axes.get_xlim()[1]], [-1.0, *up, up[-1]]
        axes.step(across, up, where="post", color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)


def _beats(one: tuple[float, float], two: tuple[float, float]) -> bool:
    return one[0] <= two[0] and one[1] >= two[1] and one != two


def _draw_point(axes: Axes, point: PlotPoint, x: float | None, interval: Bounds | None, gid: str) -> None:
    assert x is not None and point.accuracy is not None
    y, known = point.accuracy, point.accuracy_bounds
    if known is not None:
        axes.plot([x, x], [min(known.low, y), max(known.high, y)], color=point.colour, linewidth=1.6, alpha=0.75)
    if interval is not None:
        axes.plot([min(interval.low, x), max(interval.high, x)], [y, y], color=point.colour, linewidth=1.6, alpha=0.75)
    shape = MARKS[point.style % len(MARKS)][0]
    (drawn,) = axes.plot([x], [y], marker=shape, markersize=8.5, color=point.colour, linestyle="", zorder=3)
    drawn.set_gid(gid)


def _accuracy_limits(points: Sequence[PlotPoint]) -> tuple[float, float]:
    """From below the lowest interval to above the highest, at least ten points apart and never far above 100 %."""
    edges = [edge for point in points for edge in (point.accuracy, *(point.accuracy_bounds or ())) if edge is not None]
    low, high = min(edges), max(edges)
    room = max(0.02, 0.15 * (high - low))
    low, high = low - room, min(high + room, 1.01)
    return min(low, high - 0.1), high


def _percent_tick(value: float, _: int) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)


def _in_brackets(text: str) -> str:
    return f"({text})" if text else ""


def _tidy(text: str) -> str:
    return " ".join(text.split()).replace(" ,", ",")


def _for_page(svg: str, name: str, title: str, texts: Sequence[str]) -> str:
    """Cut what only files need, take the page's colours, and tell those who cannot see the plot what it shows."""
    body = svg[svg.index("<svg") :]
    # the style sheet would reach the whole page, which has these two rules for plots itself
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL).replace("xlink:href=", "href=")
    opening, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None
    rest = rest.replace(_INK, "currentColor").replace(_FAINT, "var(--rule)")
    # element names are shared by all plots of a page, and so would be their ids
    rest = re.sub(rf'\b(id="|href="#|url\(#)(?!{name}-)', rf"\g<1>{name}-", rest)
    for index, text in enumerate(texts):
        place = f'<g id="{name}-{index}">'
        rest = rest.replace(place, f"{place}<title>{html.escape(text)}</title>", 1)
    return (
        f'<svg class="plot" {view.group()} role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape("; ".join(texts))}</desc>{rest}'
    )
