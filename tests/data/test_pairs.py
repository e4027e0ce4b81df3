"""Pairs: drawn without repetition, people counting alike; read from lists and from untrusted .bin files."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.data import pairs as pairs_module
from ppfr.data.formats.pair_files import is_pair_list, load_bin, open_pairs, read_pairs
from ppfr.data.pairs import draw_pairs
from ppfr.util.errors import DataError


@settings(max_examples=60, deadline=None)
@given(
    photos=st.lists(st.integers(1, 6), min_size=2, max_size=8).filter(lambda counts: max(counts) > 1),
    wanted=st.integers(1, 40),
    listed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_drawn_pairs_are_what_they_say(photos: list[int], wanted: int, listed: bool, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(photos)), photos))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_LISTED_IMAGES", 10**6 if listed else 0)
        drawn = draw_pairs(labels, genuine=wanted, impostor=wanted, seed=seed)
        again = draw_pairs(labels, genuine=wanted, impostor=wanted, seed=seed)
    assert np.array_equal(drawn.first, again.first)
    assert np.array_equal(drawn.second, again.second)
    assert np.array_equal(labels[drawn.first] == labels[drawn.second], drawn.same)
    assert (drawn.first != drawn.second).all()
    unordered = {tuple(sorted(pair)) for pair in zip(drawn.first.tolist(), drawn.second.tolist(), strict=True)}
    assert len(unordered) == len(drawn.same)
    assert int(drawn.same.sum()) == int((~drawn.same).sum()) <= wanted


@pytest.mark.parametrize("listed", [True, False])
def test_people_count_alike(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person with 60 photos comes up as often as one with 20, in genuine and in impostor pairs."""
    monkeypatch.setattr(pairs_module, "_LISTED_IMAGES", 10**6 if listed else 0)
    labels = np.repeat(np.arange(12), [60] + [20] * 11)
    drawn = draw_pairs(labels, genuine=600, impostor=600, seed=1)
    for same in (True, False):
        people = labels[np.concatenate([drawn.first[drawn.same == same], drawn.second[drawn.same == same]])]
        # expected 1 / 12 = 0.083; by photos it would be 0.52 (genuine) and 0.21 (impostor)
        assert 0.04 < (people == 0).mean() < 0.14


def test_folds_hold_both_kinds() -> None:
    drawn = draw_pairs(np.repeat(np.arange(30), 10), genuine=500, impostor=250)
    shares = [part.mean() for part in np.array_split(drawn.same, 10)]
    assert max(shares) - min(shares) < 0.03


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 2], "no genuine pair among 3 images"), ([0, 0], "no impostor pair among 2 images"), ([[0]], "labels")],
)
def test_impossible_draws_are_refused(labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_pairs(labels)


def encoded(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (112, 112, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def test_a_pair_list_comes_back(tmp_path: Path) -> None:
    names = []
    for number in range(4):
        names.append(tmp_path / f"{number}, with a comma.png")
        names[-1].write_bytes(encoded(number))
    drawn = draw_pairs([0, 0, 1, 1], genuine=2, impostor=2)
    with open(tmp_path / "pairs.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path_a", "path_b", "same"])
        for first, second, same in zip(drawn.first, drawn.second, drawn.same, strict=True):
            writer.writerow([names[first].name, names[second].name, int(same)])
    assert is_pair_list(tmp_path / "pairs.csv")
    back = open_pairs(tmp_path / "pairs.csv")
    assert np.array_equal(back.pairs.same, drawn.same)
    names[0].write_bytes(b"no picture")
    left = read_pairs(tmp_path / "pairs.csv")
    assert len(left.pairs.same) < len(drawn.same)
    assert "0, with a comma.png" in left.pairs.skipped[0].path
    with pytest.raises(DataError, match="refused under strict"):
        read_pairs(tmp_path / "pairs.csv", strict=True)


def test_a_pair_list_must_say_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("path_a,path_b,same\na.png,b.png,perhaps\n")
    with pytest.raises(DataError, match="line 2: same is 'perhaps'; expected 1, 0, true or false"):
        read_pairs(tmp_path / "pairs.csv")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrap", [bytes, lambda data: np.frombuffer(data, np.uint8)])
def test_a_bin_file_comes_back(tmp_path: Path, protocol: int, wrap) -> None:
    content = ([wrap(encoded(number)) for number in range(6)], [True, np.bool_(False), True])
    (tmp_path / "small.bin").write_bytes(pickle.dumps(content, protocol=protocol))
    back = load_bin(tmp_path / "small.bin")
    assert back.pairs.same.tolist() == [True, False, True]
    assert back.images.shape == (6, 112, 112, 3)
    plain = cv2.imdecode(np.frombuffer(encoded(5), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.array_equal(back.images[back.pairs.second[2]], plain)


def test_insightfaces_own_file_is_read(shared: Path) -> None:
    back = load_bin(shared / "golden" / "tfrecord" / "small_lfw.bin")
    assert len(back.pairs.same) == 10
    assert back.pairs.same.all()
    assert back.images.shape == (20, 112, 112, 3)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_bin_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([Hostile(mark)], [True])))
    with pytest.raises(DataError, match=r"evil\.bin: refused"):
        load_bin(tmp_path / "evil.bin")
    assert not mark.exists()


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=5))
def test_damaged_bin_files_are_refused_or_read_in_full(tmp_path_factory, cut: int, flips: list) -> None:
    whole = pickle.dumps(([b"x" * 40] * 2 + [np.frombuffer(b"y" * 40, np.uint8)] * 2, [True, False]))
    damaged = bytearray(whole[: len(whole) - cut % len(whole)])
    for place, mask in flips:
        damaged[place % len(damaged)] ^= mask
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(bytes(damaged))
    # none of these bytes is an image, so even an undamaged file ends in a DataError: nothing else may come out
    with pytest.raises(DataError):
        load_bin(path)
