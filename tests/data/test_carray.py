"""Arrays by bcolz: the same pixels as were written, refusals that name the file, damage told or harmless."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.formats.carray import is_carray, load_carray
from ppfr.evaluation.evaluate import open_evaluation
from ppfr.util.errors import DataError
from support.benchmarksets import write_carray

blosc = pytest.importorskip("blosc", reason="arrays of bcolz need the extra 'bcolz'")

SAME = [True, False, True]


def pictures(size: int = 16) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (6 * size, size, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2).reshape(6, size, size, 3)


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_carray(tmp_path_factory.mktemp("arrays"), "lfw", pictures(), SAME)


@given(rows=st.integers(1, 7), pairs=st.integers(1, 5), side=st.sampled_from([4, 16]), seed=st.integers(0, 99))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: int, pairs: int, side: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2 * pairs, side, side, 3), np.uint8)
    same = (rng.random(pairs) < 0.5).tolist()
    folder = write_carray(tmp_path_factory.mktemp("array"), "lfw", images, same, rows=rows)
    found = load_carray(folder, size=side)
    assert np.array_equal(found.images[found.pairs.first], images[::2])
    assert np.array_equal(found.images[found.pairs.second], images[1::2])
    assert found.pairs.same.tolist() == same


def test_the_last_chunk_may_be_stored_in_full(array: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(array.parent, tmp_path / "a") / "lfw"
    last = folder / "data" / "__1.blp"
    plain = blosc.decompress(last.read_bytes()[16:])
    header = b"blpk" + struct.pack("<B3xq", 1, 1)
    last.write_bytes(header + blosc.compress(plain + b"\0" * len(plain), 4))
    assert np.array_equal(load_carray(folder, size=16).images, pictures())


def test_through_the_same_door_at_another_size(array: Path) -> None:
    assert is_carray(array) and not is_carray(array.parent)
    found = open_evaluation(array, size=32)
    assert found.images.shape == (6, 32, 32, 3)


def test_the_list_may_lie_in_the_folder(array: Path, tmp_path: Path) -> None:
    root = shutil.copytree(array.parent, tmp_path / "a")
    (root / "lfw_list.npy").rename(root / "lfw" / "lfw_list.npy")
    assert load_carray(root / "lfw", size=16).pairs.same.tolist() == SAME


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: change(root / "lfw/meta/sizes", shape=[6, 16, 16, 3]), r"expected \(2 P, 3, H, W\)"),
        (lambda root: change(root / "lfw/meta/sizes", shape=[6, 3, 16, True]), r"expected \(2 P, 3, H, W\)"),
        (lambda root: change(root / "lfw/meta/sizes", nbytes=5), "5 bytes for shape"),
        (lambda root: change(root / "lfw/meta/storage", dtype="float64"), "holds float64; expected float32"),
        (lambda root: change(root / "lfw/meta/storage", chunklen=0), "0 rows a chunk"),
        (lambda root: change(root / "lfw/meta/storage", chunklen=10**9), "expected chunks of at most 256 MB"),
        (lambda root: (root / "lfw/meta/storage").write_text("[]"), "holds a list; expected an object"),
        (lambda root: (root / "lfw/meta/storage").write_text("{"), "cannot be read as bcolz's JSON"),
        (lambda root: (root / "lfw/data/__1.blp").unlink(), r"__1\.blp: cannot be read"),
        (lambda root: (root / "lfw/data/__1.blp").write_bytes(b"blpk"), "cut short, 4 bytes"),
        (lambda root: (root / "lfw/data/__1.blp").write_bytes(b"x" * 99), "not one chunk of float32 by bcolz"),
        (lambda root: (root / "lfw_list.npy").unlink(), r"lfw_list\.npy: cannot be read"),
        (lambda root: np.save(root / "lfw_list.npy", [True]), "6 images for 1 pairs; expected 2"),
        (lambda root: np.save(root / "lfw_list.npy", [1, 2, 0]), "other values than true and false"),
        (lambda root: np.save(root / "lfw_list.npy", np.array([{}])), "cannot be read"),
    ],
)
def test_refusals_name_the_file(array: Path, tmp_path: Path, damage, message: str) -> None:
    root = shutil.copytree(array.parent, tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=message):
        load_carray(root / "lfw")


def test_pixels_scaled_in_another_way_are_refused(tmp_path: Path) -> None:
    folder = write_carray(tmp_path, "lfw", pictures(), SAME)
    values = ((pictures()[..., ::-1].transpose(0, 3, 1, 2) - 127.5) / 128).astype(np.float32)
    chunk = folder / "data" / "__0.blp"
    chunk.write_bytes(chunk.read_bytes()[:16] + blosc.compress(values[:4].tobytes(), 4))
    with pytest.raises(DataError, match="scaled in another way"):
        load_carray(folder)


def test_without_blosc_the_error_says_what_to_install(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc", None)
    with pytest.raises(DataError, match=r"pip install 'ppfr\[bcolz\]'"):
        load_carray(array)


@given(
    which=st.sampled_from(["data/__0.blp", "data/__1.blp", "meta/sizes", "meta/storage", "../lfw_list.npy"]),
    cut=st.one_of(st.just(0), st.integers(0, 10**6)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=4),
)
def test_damage_is_told_or_small(
    array: Path, tmp_path_factory: pytest.TempPathFactory, which: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    """Neither format has checksums: a flipped sign of a value and a flipped truth value are all that may pass."""
    root = tmp_path_factory.getbasetemp() / "damaged-array"
    shutil.copytree(array.parent, root, dirs_exist_ok=True)
    path = root / "lfw" / which
    damaged = bytearray(path.read_bytes())
    damaged = damaged[: len(damaged) - cut % len(damaged)]
    for place, bit in flips:
        damaged[place % len(damaged)] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    try:
        found = load_carray(root / "lfw", size=16)
    except DataError:
        return
    assert found.images.shape == (6, 16, 16, 3)
    assert (found.images != pictures()).mean() < 0.05
    assert (found.pairs.same != SAME).sum() <= (len(flips) if which.endswith("npy") else 0)
