"""RFW: both kinds of line, aligned and loose images, refusals, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.protocols.rfw import is_rfw, open_rfw, read_rfw_landmarks, read_rfw_pairs, rfw_groups
from ppfr.util.errors import DataError
from support.benchmarksets import IMAGES, faces, write_rfw


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("below", ["", "test"])
def test_pairs_and_images(tmp_path: Path, aligned: bool, below: str) -> None:
    write_rfw(tmp_path / "RFW" / below, aligned=aligned)
    assert is_rfw(tmp_path / "RFW") and rfw_groups(tmp_path / "RFW") == ["African", "Indian"]
    for group in ("African", "Indian"):
        found = open_rfw(tmp_path / "RFW", group, strict=True)
        assert found.pairs.same.tolist() == [True, False] * 5
        person = 3
        expected = faces()[[IMAGES * person, IMAGES * (person + 1) + 1]]
        images = found.images[[found.pairs.first[7], found.pairs.second[7]]]
        assert np.abs(images.astype(float) - expected).mean() < 6
    with pytest.raises(DataError, match=r"Asian_pairs\.txt"):
        open_rfw(tmp_path / "RFW", "Asian")


def test_loose_crops_need_landmarks(tmp_path: Path) -> None:
    root = write_rfw(tmp_path / "RFW", aligned=False)
    lines = root / "txts" / "African" / "African_lmk.txt"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[1:]))
    found = open_rfw(root, "African")
    assert "a loose crop of 400 x 400 without landmarks" in found.pairs.skipped[0].reason
    assert len(found.pairs) == 8
    with pytest.raises(DataError, match="refused under strict"):
        open_rfw(root, "African", strict=True)
    lines.unlink()
    with pytest.raises(DataError, match=r"none of 10 pairs can be used.*without landmarks"):
        open_rfw(root, "African")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m.01 1", "2 columns; expected NAME 1 2"),
        ("m.01 1 2 3 4", "5 columns"),
        ("m.01 1 x", "no two numbers"),
        ("m.01 1 -2", "no two numbers"),
        ("m.01 1 m.02 ٢", "no two numbers"),
        ("m.01 1 1", "expected two images of one person, or of two"),
        ("m.01 1 m.01 2", "expected two images of one person, or of two"),
        ("../m 1 2", "leads out"),
        (".. 1 2", "leads out"),
        ("", "holds no pairs"),
    ],
)
def test_lines_that_are_no_pair(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rfw_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/b.jpg 0 1 2 3", "five points"),
        ("a/b.jpg 0 1 2 3 4 5 6 7 8 9 nan", "five points"),
        ("a/b.jpg 0 1 2 3 4 5 6 7 8 9 0\na/b.jpg 0 1 2 3 4 5 6 7 8 9 1", "line 2: a/b has other points than above"),
    ],
)
def test_lines_that_are_no_landmarks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lmk.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rfw_landmarks(tmp_path / "lmk.txt")


@given(
    cut=st.integers(0, 200),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=4),
    which=st.sampled_from(["pairs", "lmk"]),
)
def test_damaged_lists_never_turn_a_label(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]], which: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    lines = (
        [b"m.0a\t1\t2\n", b"m.0b\t1\tm.0c\t2\n"] if which == "pairs" else [b"/d/m.0a/m.0a_0001.jpg\t0" + b"\t9.25" * 10]
    )
    damaged = bytearray(b"".join(lines * (5 if which == "pairs" else 1)))
    damaged = damaged[: len(damaged) - cut % len(damaged)]
    for place, bit in flips:
        damaged[place % len(damaged)] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    try:
        if which == "lmk":
            assert all(
                points.shape == (5, 2) and np.isfinite(points).all() for points in read_rfw_landmarks(path).values()
            )
            return
        pairs = read_rfw_pairs(path)
    except DataError:
        return
    for pair in pairs:
        first, second = (name.partition("/")[0] for name in (pair.first, pair.second))
        assert (first == second) is pair.same and pair.first != pair.second
