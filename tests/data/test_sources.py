from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.faceset import FaceSet
from ppfr.data.sources import holds_splits, open_faces, open_splits, split_people
from ppfr.util.errors import DataError


def save(path: Path, level: int = 0, shape: tuple[int, int] = (16, 16)) -> Path:
    """A grey picture of one level: it tells which file was read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*shape, 3), level, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people with 2, 3 and 1 images."""
    for person, levels in {"bea": (10, 11), "abe": (20, 21, 22), "cyd": (30,)}.items():
        for level in levels:
            save(tmp_path / "faces" / person / f"{level}.png", level)
    return tmp_path / "faces"


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return path

    return write


def people(count: int, images: int = 2) -> FaceSet:
    names = [f"p{person:02d}" for person in range(count) for _ in range(images)]
    blank = np.zeros((len(names), 4, 4, 3), np.uint8)
    return FaceSet("people", names, lambda rows: blank[rows], names=names, size=4)


def test_splits_and_subsets_of_drawn_faces_stay_synthetic() -> None:
    drawn = open_faces("synthetic:people=4,images=1", size=16)
    for faces in (drawn, drawn.subset([0, 2]), *split_people(drawn), *split_people(drawn.subset([0, 1, 2, 3]))):
        assert faces.synthetic
    assert not people(4).synthetic and not people(4).subset([0]).synthetic


class TestFolder:
    def test_people_and_files_are_sorted_and_numbered(self, folder: Path):
        faces = open_faces(folder, size=16)
        assert faces.identities == ["abe", "bea", "cyd"]
        assert faces.labels.tolist() == [0, 0, 0, 1, 1, 2]
        assert faces.labels.dtype == np.int64
        assert faces.images().shape == (6, 16, 16, 3)
        assert faces.images()[:, 0, 0, 0].tolist() == [20, 21, 22, 10, 11, 30]
        assert len(faces) == 6
        assert faces.skipped == []

    def test_other_files_and_deeper_folders(self, folder: Path):
        (folder / "abe" / "notes.txt").write_text("not a face")
        save(folder / "abe" / "more" / "1.PNG", 99)
        assert open_faces(folder, size=16).images()[:, 0, 0, 0].tolist() == [20, 21, 22, 99, 10, 11, 30]

    def test_a_broken_image_is_named_skipped_and_counted(self, folder: Path):
        (folder / "bea" / "10.png").write_bytes(b"not an image")
        faces = open_faces(folder, size=16)
        assert len(faces) == 5
        assert [(Path(skip.path).name, skip.reason) for skip in faces.skipped] == [
            ("10.png", "not an image that OpenCV can decode")
        ]
        assert faces.images()[:, 0, 0, 0].tolist() == [20, 21, 22, 11, 30]
        assert "1 skipped" in repr(faces)

    def test_strict_makes_it_fatal(self, folder: Path):
        (folder / "bea" / "10.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"1 refused under strict; .*bea/10\.png: empty file"):
            open_faces(folder, size=16, strict=True)

    def test_an_empty_identity_is_reported(self, folder: Path):
        (folder / "dan").mkdir()
        faces = open_faces(folder, size=16)
        assert "dan" not in faces.identities
        assert [skip.reason for skip in faces.skipped] == ["identity without images"]

    def test_an_identity_that_loses_all_its_images_is_reported(self, folder: Path):
        save(folder / "cyd" / "30.png", shape=(16, 20))
        faces = open_faces(folder, size=16)
        assert faces.identities == ["abe", "bea"]
        assert "not square" in faces.skipped[0].reason
        assert faces.skipped[1] == ("cyd", "identity without a usable image")

    def test_nothing_usable(self, tmp_path: Path):
        (tmp_path / "faces" / "abe").mkdir(parents=True)
        (tmp_path / "faces" / "abe" / "1.png").write_bytes(b"x")
        with pytest.raises(DataError, match=r"none of 1 images can be used; .*1\.png: not an image"):
            open_faces(tmp_path / "faces")

    def test_images_that_do_not_fit_in_memory_are_read_from_disk(self, folder: Path):
        kept, read = open_faces(folder, size=16), open_faces(folder, size=16, cache_bytes=0)
        np.testing.assert_array_equal(kept.images(), read.images())
        (folder / "cyd" / "30.png").unlink()
        assert kept.image(5)[0, 0, 0] == 30
        with pytest.raises(DataError, match=r"30\.png: file not found"):
            read.image(5)

    def test_a_folder_without_images(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"holds no images; expected .*/IDENTITY/IMAGE\.jpg"):
            open_faces(tmp_path)

    def test_two_sets_are_not_two_people(self, folder: Path):
        folder.rename(folder.parent / "train")
        save(folder.parent / "test" / "eve" / "1.png")
        with pytest.raises(DataError, match=r"holds two sets, train and test; expected one, as .*test"):
            open_faces(folder.parent)


class TestCsv:
    def test_order_and_identities_of_the_file(self, folder: Path, listing: Callable[..., Path]):
        path = listing("path,identity", "faces/cyd/30.png, 7", "faces/abe/20.png,12", "faces/abe/21.png,7")
        faces = open_faces(path, size=16)
        assert faces.identities == ["12", "7"]
        assert faces.labels.tolist() == [1, 0, 1]
        assert faces.images()[:, 0, 0, 0].tolist() == [30, 20, 21]

    def test_other_columns_and_a_byte_order_mark(self, folder: Path, listing: Callable[..., Path]):
        path = listing("identity,age,path", "abe,9,faces/abe/20.png", encoding="utf-8-sig")
        assert open_faces(path, size=16).identities == ["abe"]

    def test_a_missing_column_is_named_beside_what_was_found(self, listing: Callable[..., Path]):
        path = listing("file,identity", "a.png,1")
        with pytest.raises(DataError, match="column path is missing; found file, identity, expected path, identity"):
            open_faces(path)

    def test_an_empty_file(self, listing: Callable[..., Path]):
        with pytest.raises(DataError, match=r"column path, identity is missing; found an empty file"):
            open_faces(listing(""))
        with pytest.raises(DataError, match="lists no images"):
            open_faces(listing("path,identity"))

    def test_not_text(self, tmp_path: Path):
        (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00path")
        with pytest.raises(DataError, match="cannot be read as a CSV in UTF-8"):
            open_faces(tmp_path / "list.csv")

    def test_incomplete_repeated_and_missing_lines_are_accounted_for(self, folder: Path, listing: Callable[..., Path]):
        path = listing("path,identity", "faces/abe/20.png,a", "faces/abe/21.png", "faces/abe/20.png,b", "no.png,c")
        faces = open_faces(path, size=16)
        assert len(faces) == 1
        assert [skip.reason for skip in faces.skipped] == [
            "no identity",
            "listed again in line 4",
            "file not found",
            "identity without a usable image",
        ]


def test_sources_that_are_none(tmp_path: Path):
    with pytest.raises(DataError, match="no such data set; expected a folder per identity"):
        open_faces(tmp_path / "nowhere")
    (tmp_path / "faces.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a folder per identity, .* \(\.rec\); a \.bin pair file"):
        open_faces(tmp_path / "faces.bin")


class TestFaceSet:
    def test_images_belong_to_the_caller(self, folder: Path):
        faces = open_faces(folder, size=16)
        faces.images()[:] = 0
        faces.image(0)[:] = 0
        assert faces.images()[:, 0, 0, 0].tolist() == [20, 21, 22, 10, 11, 30]

    @pytest.mark.parametrize("index", [-1, 6])
    def test_an_index_outside(self, folder: Path, index: int):
        with pytest.raises(DataError, match=rf"there is no image {index}; the set has 0\.\.5"):
            open_faces(folder, size=16).image(index)

    def test_a_mask_is_no_index(self, folder: Path):
        with pytest.raises(DataError, match="one row of integers, got bool"):
            open_faces(folder, size=16).images(np.ones(6, bool))

    def test_subset_counts_labels_anew(self, folder: Path):
        part = open_faces(folder, size=16).subset([5, 3])
        assert part.identities == ["bea", "cyd"]
        assert part.labels.tolist() == [1, 0]
        assert part.images()[:, 0, 0, 0].tolist() == [30, 10]
        assert part.subset([1]).images()[0, 0, 0, 0] == 10


class TestSplits:
    def test_a_pair_of_lists(self, folder: Path):
        (folder / "train.csv").write_text("path,identity\nabe/20.png,abe\n")
        (folder / "test.csv").write_text("path,identity\nbea/10.png,bea\n")
        train, test = open_splits(folder, size=16)
        assert (train.identities, test.identities) == (["abe"], ["bea"])
        assert holds_splits(folder)

    def test_a_pair_of_folders(self, folder: Path):
        save(folder.parent / "both" / "test" / "eve" / "1.png")
        folder.rename(folder.parent / "both" / "train")
        train, test = open_splits(folder.parent / "both", size=16)
        assert (len(train), len(test)) == (6, 1)

    def test_people_in_both_are_refused(self, folder: Path):
        for part in ("train", "test"):
            (folder / f"{part}.csv").write_text("path,identity\nabe/20.png,abe\n")
        with pytest.raises(DataError, match=r"1 identities are in both train and test .first: abe."):
            open_splits(folder, size=16)

    def test_one_set_is_split_by_people(self, folder: Path):
        save(folder / "dan" / "1.png", 40)
        (folder / "eve").mkdir()
        train, test = open_splits(folder, size=16)
        assert len(train) + len(test) == 7
        assert train.skipped[0].reason == "identity without images"
        again = open_splits(folder, size=16)
        assert again[1].names == test.names

    def test_too_few_people(self, folder: Path):
        with pytest.raises(DataError, match="3 people; splitting into train and test needs at least 4"):
            open_splits(folder, size=16)

    @given(count=st.integers(4, 60), seed=st.integers(0, 2**32), images=st.integers(1, 4))
    def test_a_split_shares_nobody_and_loses_nothing(self, count: int, seed: int, images: int):
        faces = people(count, images)
        train, test = split_people(faces, seed=seed)
        assert not set(train.identities) & set(test.identities)
        assert sorted(train.names + test.names) == faces.names
        assert len(test.identities) == max(2, round(0.2 * count))

    def test_the_seed_chooses_the_people(self):
        chosen = {tuple(split_people(people(20), seed=seed)[1].identities) for seed in range(5)}
        assert len(chosen) == 5

    def test_the_shared_faces(self, shared: Path):
        train, test = open_splits(shared / "faces")
        assert (len(train), len(train.identities)) == (3508, 177)
        assert (len(test), len(test.identities)) == (1170, 59)
        assert train.skipped == test.skipped == []
