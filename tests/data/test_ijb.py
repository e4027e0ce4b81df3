"""IJB's lists: read as they are meant, refused where they contradict each other, whatever was done to them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.protocols.ijb import IjbLists, is_ijb, open_ijb, read_ijb
from ppfr.util.errors import DataError
from support.benchmarksets import IMAGES, PEOPLE, faces, write_ijb

LISTS = (
    "name_5pts_score.txt",
    "face_tid_mid.txt",
    "template_pair_label.txt",
    "1N_gallery_S1.csv",
    "1N_probe_mixed.csv",
)


@pytest.fixture(scope="module")
def ijb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ijb(tmp_path_factory.mktemp("ijb") / "IJBB")


def test_lists_are_read_and_images_aligned(ijb: Path) -> None:
    assert is_ijb(ijb, "ijbb") and not is_ijb(ijb, "ijbc")
    lists = read_ijb(ijb, "ijbb")
    assert len(lists.names) == PEOPLE * IMAGES
    assert lists.templates[:5].tolist() == [10, 10, 10, 10, 20] and lists.medias[:4].tolist() == [0, 1, 1000, 1000]
    assert len(lists.same) == 12 * 11 // 2 and lists.same.sum() == PEOPLE
    assert lists.scores[2] == pytest.approx(0.902)
    assert list(lists.galleries) == ["S1", "S2"]
    assert lists.galleries["S2"].templates.tolist() == [70, 90, 110]
    assert lists.probes is not None and lists.probes.subjects.tolist() == list(range(100, 106))
    test = open_ijb(lists, strict=True)
    assert test.faces.identities[:2] == ["10", "20"] and not test.left_out
    # turned there and back, and through JPEG: close to the face again
    difference = np.abs(test.faces.images().astype(float) - faces())
    assert difference.mean() < 6
    assert open_ijb(lists, size=128).faces.images([0]).shape == (1, 128, 128, 3)


def test_without_galleries_there_is_no_search(tmp_path: Path) -> None:
    lists = read_ijb(write_ijb(tmp_path / "IJBC", "ijbc", searches=False), "ijbc")
    assert lists.galleries == {} and lists.probes is None


def test_lost_images_are_named_and_take_their_pairs_along(ijb: Path, tmp_path: Path) -> None:
    root = shutil.copytree(ijb, tmp_path / "IJBB")
    (root / "loose_crop" / "5.jpg").write_bytes(b"")
    for number in range(1, 5):
        (root / "loose_crop" / f"{number}.jpg").unlink()
    lists = read_ijb(root, "ijbb")
    test = open_ijb(lists)
    assert [skipped.path for skipped in test.faces.skipped] == [f"{number}.jpg" for number in range(1, 6)]
    assert "empty file" in test.faces.skipped[4].reason
    assert [skipped.path for skipped in test.lost] == ["template 10"]
    assert test.rows[0] == 5 and len(test.pairs) == 11 * 10 // 2
    assert test.galleries["S1"].templates.tolist() == [30, 50]
    with pytest.raises(DataError, match="refused under strict"):
        open_ijb(lists, strict=True)
    (root / "loose_crop" / "9.jpg").unlink()
    with pytest.raises(DataError, match=r"9\.jpg: file not found"):
        test.faces.images(np.arange(6))
    shutil.rmtree(root / "loose_crop")
    with pytest.raises(DataError, match="0 can be used"):
        open_ijb(lists)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("name_5pts_score.txt", "2.jpg ", "2.jpg 7 ", r"line 2: 12 numbers behind '2\.jpg'; expected 11"),
        ("name_5pts_score.txt", "2.jpg ", "3.jpg ", r"line 3: '3\.jpg' was listed before, in line 2"),
        ("name_5pts_score.txt", "2.jpg ", "../2.jpg ", "leads out of the images' folder"),
        ("name_5pts_score.txt", " 0.9010", " nan", "not all numbers"),
        ("name_5pts_score.txt", " 0.9010", " 1e999", "a number is not finite"),
        ("name_5pts_score.txt", " 0.9010", " 0_9", "not all numbers"),
        ("face_tid_mid.txt", "3.jpg ", "x.jpg ", "differ: line 3 of either"),
        ("face_tid_mid.txt", "48.jpg 120 1011\n", "", "48 and 47 images"),
        ("face_tid_mid.txt", "3.jpg 10 ", "3.jpg 1.5 ", "line 3"),
        ("face_tid_mid.txt", "3.jpg 10 ", f"3.jpg {10**30} ", "beyond 64 bits"),
        ("template_pair_label.txt", "10 20 1", "10 25 1", "1 templates have no images, among them 25"),
        ("template_pair_label.txt", "10 20 1", "10 20 2", "pair 1 has the label 2; expected 0 or 1"),
        ("template_pair_label.txt", "10 20 1", "10 20", "number of columns changed"),
        ("template_pair_label.txt", "10 20 1", "10 20 x", "could not convert"),
        ("1N_gallery_S1.csv", "TEMPLATE_ID", "T", "expected TEMPLATE_ID and SUBJECT_ID"),
        ("1N_gallery_S1.csv", "10,100,0.jpg", "10,101,0.jpg", "template 10 is of subject 100, above of 101"),
        ("1N_gallery_S1.csv", "10,100,0.jpg", "10,,0.jpg", "has no template and subject"),
        ("1N_probe_mixed.csv", "20,100,", "25,100,", "1 templates have no images, among them 25"),
    ],
)
def test_contradictions_are_refused(ijb: Path, tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    root = shutil.copytree(ijb, tmp_path / "IJBB", ignore=shutil.ignore_patterns("loose_crop"))
    path = root / "meta" / f"ijbb_{file}"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as refusal:
        read_ijb(root, "ijbb")
    assert file in str(refusal.value)


@pytest.mark.parametrize("file", LISTS[:3])
@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_missing_and_empty_lists(ijb: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    root = shutil.copytree(ijb, tmp_path / "IJBB", ignore=shutil.ignore_patterns("loose_crop"))
    path = root / "meta" / f"ijbb_{file}"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=file):
        read_ijb(root, "ijbb")


@cache
def intact(root: Path) -> IjbLists:
    return read_ijb(root, "ijbb")


@given(
    file=st.sampled_from(LISTS),
    cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=3),
)
def test_damaged_lists_are_refused_or_keep_their_sense(
    ijb: Path, tmp_path_factory: pytest.TempPathFactory, file: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged-ijb"
    shutil.copytree(ijb / "meta", root / "meta", dirs_exist_ok=True)
    path = root / "meta" / f"ijbb_{file}"
    damaged = bytearray(path.read_bytes())
    damaged = damaged[: len(damaged) - cut % len(damaged)]
    for place, bit in flips:
        damaged[place % len(damaged)] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    whole = intact(ijb)
    try:
        lists = read_ijb(root, "ijbb")
    except DataError:
        return
    # what is read fits together: nothing shifted by a line or a column
    assert lists.names == whole.names and np.isfinite(lists.landmarks).all()
    known = set(lists.templates.tolist())
    assert set(lists.first.tolist()) | set(lists.second.tolist()) <= known
    assert sum(lists.templates != whole.templates) <= len(flips)
    assert (lists.landmarks != whole.landmarks).sum() + (lists.scores != whole.scores).sum() <= len(flips) + 1
    pairs = min(len(lists.same), len(whole.same))
    if not flips:
        assert np.array_equal(lists.same, whole.same[:pairs]) and np.array_equal(lists.first, whole.first[:pairs])
