"""Plots: what they hold, and that text of others stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from ppfr.reports.figures import COLOURS, MARKS, PlotPoint, bytes_plot, leakage_plot, likeness_plot
from ppfr.reports.wording import Bounds

HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}{$\" _x"


def points() -> list[PlotPoint]:
    return [
        PlotPoint("clear", 0, 0.96, Bounds(0.95, 0.97), 0.98, Bounds(0.9, 1.0), 1.0, Bounds(0.99, 1.0), 150_528),
        PlotPoint("protected", 1, 0.9, Bounds(0.88, 0.92), 0.3, Bounds(0.2, 0.4), 0.5, Bounds(0.4, 0.6), 1_354_752),
        PlotPoint("unknown", 2, 0.93),
        PlotPoint("unmeasured", 3, None, None, 0.1),
    ]


def texts(svg: str) -> list[str]:
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_each_measured_method_is_a_point_with_its_figures() -> None:
    told = [text.replace("\u202f", " ") for text in texts(leakage_plot(points()))]
    assert "clear: 96.0 % of pairs (95.0–97.0 %), leak 98.0 % (90.0–100.0 %)" in told
    assert "protected: 90.0 % of pairs (88.0–92.0 %), leak 30.0 % (20.0–40.0 %)" in told
    assert "worst leak, as a share of what clear photos give  (left is better)" in told
    assert not [text for text in told if text.startswith(("unknown", "unmeasured"))]


def test_points_lie_where_their_figures_are() -> None:
    svg = leakage_plot(points())
    places = [
        tuple(map(float, found))
        for found in re.findall(r'<g id="leakage-\d">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg, flags=re.DOTALL)
    ]
    (clear_x, clear_y), (protected_x, protected_y) = places
    assert clear_x > protected_x
    assert clear_y < protected_y  # SVG counts from the top


def test_likeness_and_bytes() -> None:
    assert any("SSIM 0.50" in text for text in texts(likeness_plot(points())))
    told = [text.replace("\u202f", " ") for text in texts(bytes_plot(points()))]
    assert any("1.35 MB" in text for text in told)
    assert "1 MB" in told


@pytest.mark.parametrize("plot", [leakage_plot, likeness_plot, bytes_plot])
def test_nothing_measured_gives_no_plot(plot: object) -> None:
    assert callable(plot)
    assert plot([PlotPoint("unknown", 0, 0.9)]) == ""
    assert plot([]) == ""


@pytest.mark.parametrize(("accuracy", "leak"), [(1.0, 0.0), (0.5, 1.0), (0.0, 0.5)])
def test_extremes_are_drawn(accuracy: float, leak: float) -> None:
    svg = leakage_plot([PlotPoint("only", 9, accuracy, Bounds(accuracy, accuracy), leak, Bounds(leak, leak))])
    assert "NaN" not in svg
    assert len(texts(svg)) > 5


def test_the_mark_is_inside_the_plot() -> None:
    for svg in (leakage_plot(points(), "synthetic faces"), bytes_plot(points(), "synthetic faces")):
        assert "synthetic faces" in texts(svg)


def test_titles_of_others_stay_text() -> None:
    svg = leakage_plot([PlotPoint(HOSTILE, 0, 0.9, None, 0.5)])
    assert "<script" not in svg
    assert any(HOSTILE in text for text in texts(svg))


def test_plots_are_reproducible_and_fit_for_one_page() -> None:
    made = [leakage_plot(points()), likeness_plot(points()), bytes_plot(points())]
    assert made == [leakage_plot(points()), likeness_plot(points()), bytes_plot(points())]
    ids = [found for svg in made for found in re.findall(r'id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in made:
        wanted = re.findall(r'(?:href="|url\()#([^")]+)', svg)
        assert wanted
        assert set(wanted) <= set(re.findall(r'id="([^"]+)"', svg))
        assert "http" not in svg
        assert "<style" not in svg
        assert "#010203" not in svg
        assert "#040506" not in svg


def test_styles_tell_methods_apart_without_colour() -> None:
    found = [PlotPoint("x", style, 0.9) for style in range(len(COLOURS))]
    assert len({point.colour for point in found}) == len({point.mark for point in found}) == len(COLOURS)
    assert len(MARKS) == len(COLOURS)
    assert PlotPoint("x", len(COLOURS), 0.9).colour == COLOURS[0]
