"""Packed sets as a whole: Parquet, TFRecord and RecordIO, and every way in which files can be damaged."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.data.batches import Batches
from ppfr.data.faceset import FaceSet
from ppfr.data.formats.convert import convert
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.record_sets.files import DataFiles
from ppfr.data.sources import open_faces
from ppfr.util.errors import DataError

PACKED = (".parquet", ".txt", ".rec")
DATA = {".parquet", ".tfrecord", ".rec"}


def contents(faces: FaceSet) -> dict[str, tuple[str, bytes]]:
    """Identity and pixels of every image by its name."""
    people = [faces.identities[label] for label in faces.labels.tolist()]
    return {
        name: (person, image.tobytes()) for name, person, image in zip(faces.names, people, faces.images(), strict=True)
    }


@pytest.fixture
def copy(face_sets: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of a set, by its suffix."""

    def make(suffix: str) -> Path:
        folder = tmp_path / f"copy{suffix}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(face_sets[suffix].parent, folder)
        return folder / face_sets[suffix].name

    return make


class TestDataFiles:
    def test_pieces_are_whole_or_an_error(self, tmp_path: Path):
        (tmp_path / "x").write_bytes(b"0123456789")
        files = DataFiles([tmp_path / "x", tmp_path / "gone"])
        assert files.read(0, 3, 4) == b"3456"
        for offset, size in ((8, 3), (11, 1), (0, 1 << 62), (-1, 1), (0, -1)):
            with pytest.raises(DataError, match="cut short"):
                files.read(0, offset, size)
        with pytest.raises(DataError, match="No such file"):
            files.read(1, 0, 1)


@pytest.mark.parametrize("suffix", PACKED)
class TestSets:
    def test_what_is_cached_is_what_is_read_at_random(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        first, again = open_faces(path, size=16), open_faces(path, size=16, cache_bytes=0)
        assert contents(first) == contents(again)
        np.testing.assert_array_equal(first.labels, again.labels)
        np.testing.assert_array_equal(again.images([5, 0, 7]), first.images()[[5, 0, 7]])

    def test_an_opened_set_can_be_pickled(self, copy: Callable[[str], Path], suffix: str):
        faces = open_faces(copy(suffix), size=16, cache_bytes=0).subset([1, 4, 6])
        there = pickle.loads(pickle.dumps(faces))
        assert contents(there) == contents(faces)

    def test_a_file_that_changes_while_the_set_is_open_is_noticed(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        faces = open_faces(path, size=16, cache_bytes=0)
        data = next(file for file in path.parent.rglob("*") if file.suffix in DATA)
        damaged = bytearray(data.read_bytes())
        damaged[data.stat().st_size // 2] ^= 1
        data.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{data.name}, (byte|row) \d+: "):
            faces.images()
        data.write_bytes(b"")
        with pytest.raises(DataError, match=rf"{data.name}, (byte|row) \d+: cut short"):
            faces.images()

    def test_oblong_images_are_kept_for_converting_but_not_for_training(
        self, face_folder: Path, tmp_path: Path, suffix: str
    ):
        if suffix == ".rec":
            return  # not written
        shutil.copytree(face_folder, tmp_path / "mixed")
        cv2.imwrite(str(tmp_path / "mixed" / "abe" / "0.png"), np.zeros((16, 20, 3), np.uint8))
        convert(tmp_path / "mixed", tmp_path / f"set{suffix}")
        assert len(open_records(tmp_path / f"set{suffix}")) == 9
        for cache in (0, 1 << 30):
            faces = open_faces(tmp_path / f"set{suffix}", size=16, cache_bytes=cache)
            assert len(faces) == 8
            assert "not square" in faces.skipped[0].reason

    def test_batches_are_those_of_the_folder(self, face_sets: dict[str, Path], suffix: str):
        from_folder, from_records = open_faces(face_sets[""], size=16), open_faces(face_sets[suffix], size=16)
        for one, other in zip(
            Batches(from_folder, 4, seed=1, epoch=2), Batches(from_records, 4, seed=1, epoch=2), strict=True
        ):
            assert (one.images == other.images).all() and (one.labels == other.labels).all()


class TestLines:
    """Lines of TFace's indices that cannot be understood."""

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("faces\t0\t0", "3 fields; expected record set, shard, offset and label"),
            ("faces\tx\t0\t0", "'x' is not a whole number"),
            ("faces\t0\t0\t-1", "'-1' is not a whole number"),
            ("../faces\t0\t0\t0", "'../faces' is no name of a folder"),
            ("faces\t0\t7\t0", "the checksum of the record's length is wrong"),
            ("faces\t0\t99999999\t0", "cut short"),
            ("faces\t7\t0\t0", "No such file"),
        ],
    )
    def test_of_the_training_index(self, copy: Callable[[str], Path], line: str, reason: str):
        path = copy(".txt")
        with path.open("a") as stream:
            stream.write(line + "\n")
        faces = open_faces(path, size=16)
        assert len(faces) == 8
        assert reason in faces.skipped[0].reason
        assert "line 9" in faces.skipped[0].path or "tfrecord" in faces.skipped[0].path

    def test_of_the_index_of_images(self, copy: Callable[[str], Path]):
        path = copy(".txt").parent / "faces" / "faces.index"
        with path.open("a") as stream:
            stream.write("alone.jpg\t0\t0\nx/y.jpg\t0\n")
        faces = open_faces(path, size=16)
        assert faces.identities == ["abe", "bea", "cyd"]
        assert [skip.path for skip in faces.skipped] == [f"{path}, line 9", f"{path}, line 10"]
        assert "in no folder" in faces.skipped[0].reason

    def test_of_another_file(self, tmp_path: Path):
        (tmp_path / "notes.txt").write_text("to do: nothing\n")
        with pytest.raises(DataError, match=r"names no record; expected lines of .*line 1: 1 fields"):
            open_faces(tmp_path / "notes.txt")
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(DataError, match="names no record"):
            open_faces(tmp_path / "empty.txt")


def damage(draw: st.DataObject, files: Sequence[Path]) -> None:
    """Cut one of the files, or change a few of its bits."""
    file = draw.draw(st.sampled_from(files))
    data = bytearray(file.read_bytes())
    if draw.draw(st.booleans()):
        del data[draw.draw(st.integers(0, len(data) - 1)) :]
    else:
        for _ in range(draw.draw(st.integers(1, 3))):
            data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    file.write_bytes(data)


def caught(attempt: Callable[[], Any]) -> Any:
    """The result, or the DataError in its place; any other error is a defect."""
    try:
        return attempt()
    except DataError as error:
        return error


@pytest.mark.parametrize("suffix", PACKED)
class TestDamage:
    """Whatever happens to the files of a set, nothing crashes, nothing hangs, and nothing wrong is loaded."""

    @given(draw=st.data())
    @settings(max_examples=80)
    def test_of_the_files_of_a_set(
        self, face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, suffix: str, draw: st.DataObject
    ):
        folder = tmp_path_factory.mktemp("damaged") / "set"
        shutil.copytree(face_sets[suffix].parent, folder)
        damage(draw, [file for file in folder.rglob("*") if file.suffix in {*DATA, ".idx"}])
        true = contents(open_faces(face_sets[suffix], size=16))
        cache = draw.draw(st.sampled_from([0, 1 << 20]))
        faces = caught(lambda: open_faces(folder / face_sets[suffix].name, size=16, cache_bytes=cache))
        found = faces if isinstance(faces, DataError) else caught(lambda: contents(faces))
        if isinstance(found, DataError):
            assert str(folder) in str(found)
        elif suffix == ".parquet":
            # checksums of every page and image
            assert found.items() <= true.items()
        elif suffix == ".txt":
            # RecordIO has no checksums: a damaged image that decodes is not noticed
            assert {image for _, image in found.values()} <= {image for _, image in true.values()}
        shutil.rmtree(folder)

    @given(draw=st.data())
    @settings(max_examples=50)
    def test_of_records_while_the_set_is_open(
        self, face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, suffix: str, draw: st.DataObject
    ):
        folder = tmp_path_factory.mktemp("damaged") / "set"
        shutil.copytree(face_sets[suffix].parent, folder)
        faces = open_faces(folder / face_sets[suffix].name, size=16, cache_bytes=0)
        true = faces.images()
        data = next(file for file in folder.rglob("*") if file.suffix in DATA)
        damage(draw, [data])
        for row in range(len(faces)):
            image = caught(lambda row=row: faces.image(row))
            if isinstance(image, DataError):
                assert f"{data.name}, " in str(image)
            else:
                np.testing.assert_array_equal(image, true[row])
        shutil.rmtree(folder)


@given(draw=st.data())
@settings(max_examples=60)
def test_damage_to_the_index_of_images(
    face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
):
    """The other layout of TFRecord, `NAME/NAME.index`: its names tell the people; checksums tell wrong positions."""
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(face_sets[".txt"].parent, folder)
    index = folder / "faces" / "faces.index"
    true = {image.tobytes() for image in open_faces(face_sets[".txt"], size=16).images()}
    damage(draw, [index, *(folder / "faces").glob("*.tfrecord")])
    faces = caught(lambda: open_faces(index, size=16))
    if isinstance(faces, DataError):
        assert str(folder) in str(faces)
    else:
        assert {image.tobytes() for image in faces.images()} <= true
    shutil.rmtree(folder)


def by_file(faces: FaceSet) -> dict[str, tuple[str, bytes]]:
    """As `contents`, by the last folder and name of each file."""
    return {"/".join(Path(name).parts[-2:]): value for name, value in contents(faces).items()}


@pytest.mark.parametrize("suffix", ["", ".csv"])
@given(draw=st.data())
@settings(max_examples=80)
def test_damage_to_sets_of_files(
    face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, suffix: str, draw: st.DataObject
):
    """What is left out is told; a JPEG, which has no checksum, may change its pixels, a PNG may not."""
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(face_sets[suffix] if not suffix else face_sets[suffix].parent, folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    before = {file: file.read_bytes() for file in files}
    damage(draw, files)
    [changed] = [file for file in files if file.read_bytes() != before[file]] or [None]
    true = by_file(open_faces(face_sets[suffix], size=16))
    faces = caught(lambda: open_faces(folder if not suffix else folder / face_sets[suffix].name, size=16))
    if isinstance(faces, DataError):
        assert str(folder) in str(faces)
    elif changed is not None and changed.suffix != ".csv":
        found = by_file(faces)
        assert len(found) + len(faces.skipped) == len(true)
        assert {Path(skip.path).name for skip in faces.skipped} <= {changed.name}
        wrong = {name for name, value in found.items() if value != true[name]}
        assert wrong <= ({f"{changed.parent.name}/{changed.name}"} if changed.suffix == ".jpg" else set())
        if len(changed.read_bytes()) < len(before[changed]):
            assert not wrong
    shutil.rmtree(folder)
