"""Record sets as a whole: the compiled index, names, and every way in which files can be damaged."""

from __future__ import annotations

import os
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
from ppfr.data.formats import recordfiles
from ppfr.data.formats.convert import convert
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.recordfiles import DataFiles, Texts
from ppfr.data.formats.records import build_index
from ppfr.data.formats.rowindex import index_path, load_index
from ppfr.data.sources import open_faces
from ppfr.util.errors import DataError

RECORDS = (".txt", ".rec")


def index_of(path: Path) -> Path:
    return path.with_name(path.name + ".ppfr-index")


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
        shutil.copytree(face_sets[suffix].parent, folder, ignore=shutil.ignore_patterns("*.ppfr-index"))
        return folder / face_sets[suffix].name

    return make


@given(st.lists(st.text(max_size=5)), st.integers(1, 4))
def test_texts_come_back(texts: list[str], at_once: int):
    packed = Texts.of(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordfiles, "_TEXTS", at_once)
        assert list(packed) == [packed[row] for row in range(len(packed))] == texts
    assert packed[1:] == texts[1:]
    if texts:
        assert packed[-1] == texts[-1]
    with pytest.raises(IndexError):
        packed[len(texts)]


def test_texts_keep_the_bytes_of_odd_file_names():
    assert Texts.of([os.fsdecode(b"a\xff")])[0] == os.fsdecode(b"a\xff")


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


@pytest.mark.parametrize("suffix", RECORDS)
class TestIndex:
    def test_what_is_opened_again_is_the_same(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        first, again = open_faces(path, size=16), open_faces(path, size=16, cache_bytes=0)
        assert contents(first) == contents(again)
        np.testing.assert_array_equal(first.labels, again.labels)
        assert index_path(path) == index_of(path)

    def test_it_is_made_once(self, copy: Callable[[str], Path], suffix: str, monkeypatch: pytest.MonkeyPatch):
        path = copy(suffix)
        open_faces(path, size=16)
        monkeypatch.setattr("ppfr.data.formats.records.build_index", lambda path: pytest.fail("made again"))
        open_faces(path, size=16, cache_bytes=0)

    def test_mapped_arrays_are_those_that_were_built(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        built = build_index(path)
        open_records(path)
        mapped = load_index(index_of(path), path.parent)
        assert mapped is not None
        for name in ("shards", "offsets", "sizes", "labels", "checks", "oblong"):
            np.testing.assert_array_equal(getattr(built, name), getattr(mapped, name))
        assert (mapped.identities, list(mapped.names or [])) == (built.identities, list(built.names or []))
        assert (mapped.files, mapped.stamped) == (built.files, built.stamped)

    def test_a_changed_set_gets_a_new_index(
        self, copy: Callable[[str], Path], suffix: str, image_bytes: Callable[..., bytes]
    ):
        path = copy(suffix)
        assert len(open_faces(path, size=16)) == 8
        data = next(file for file in path.parent.rglob("*") if file.suffix in {".tfrecord", ".rec"})
        data.write_bytes(data.read_bytes()[:-400] + b"x" * 400)
        assert 0 < len(open_faces(path, size=16, cache_bytes=0)) < 8

    def test_a_file_that_changes_while_the_set_is_open_is_noticed(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        faces = open_faces(path, size=16, cache_bytes=0)
        data = next(file for file in path.parent.rglob("*") if file.suffix in {".tfrecord", ".rec"})
        damaged = bytearray(data.read_bytes())
        damaged[data.stat().st_size // 2] ^= 1
        data.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{data.name}, byte \d+: "):
            faces.images()
        data.write_bytes(b"")
        with pytest.raises(DataError, match=rf"{data.name}, byte \d+: cut short"):
            faces.images()

    def test_names_disappear_with_their_file(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        named = open_faces(path, size=16)
        path.with_name("faces.names.csv").unlink()
        bare = open_faces(path, size=16)
        assert named.identities == ["abe", "bea", "cyd"]
        assert bare.identities == ["0", "1", "2"]
        np.testing.assert_array_equal(bare.labels, named.labels)
        assert "byte" in bare.names[0]

    def test_names_of_another_set_are_refused(self, copy: Callable[[str], Path], suffix: str):
        path = copy(suffix)
        names = path.with_name("faces.names.csv")
        lines = names.read_text().splitlines()
        names.write_text("\n".join(lines[:-1]) + "\n")
        with pytest.raises(DataError, match="7 lines for 8 images"):
            open_faces(path)
        names.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
        with pytest.raises(DataError, match=r"none of 8 records can be used; .*has changed since it was written"):
            open_faces(path)
        names.write_text("name,who\n")
        with pytest.raises(DataError, match="expected the columns path,identity,check"):
            open_faces(path)

    def test_oblong_images_are_kept_for_converting_but_not_for_training(
        self, face_folder: Path, tmp_path: Path, suffix: str
    ):
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

    def test_a_folder_that_cannot_be_written(
        self, copy: Callable[[str], Path], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = copy(suffix)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(os, "access", lambda *_: False)
        open_faces(path, size=16)
        assert not index_of(path).exists()
        assert index_path(path).parent == tmp_path / "cache" / "ppfr" / "index"
        assert index_path(path).exists()


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
        path.with_name("faces.names.csv").unlink()
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


@pytest.fixture(scope="module")
def indexed_sets(face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets with their compiled index."""
    sets: dict[str, Path] = {}
    for suffix in RECORDS:
        folder = tmp_path_factory.mktemp("indexed") / "set"
        shutil.copytree(face_sets[suffix].parent, folder)
        sets[suffix] = folder / face_sets[suffix].name
        open_records(sets[suffix])
    return sets


@pytest.mark.parametrize("suffix", RECORDS)
class TestDamage:
    """Whatever happens to the files of a set, nothing crashes, nothing hangs, and nothing wrong is loaded."""

    @given(draw=st.data())
    @settings(max_examples=80)
    def test_of_any_file_of_a_set_with_names(
        self, face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, suffix: str, draw: st.DataObject
    ):
        folder = tmp_path_factory.mktemp("damaged") / "set"
        shutil.copytree(face_sets[suffix].parent, folder, ignore=shutil.ignore_patterns("*.ppfr-index"))
        # the index of images is not read where there is a training index
        damage(draw, sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".index"))
        true = contents(open_faces(face_sets[suffix], size=16))
        cache = draw.draw(st.sampled_from([0, 1 << 20]))
        faces = caught(lambda: open_faces(folder / face_sets[suffix].name, size=16, cache_bytes=cache))
        if isinstance(faces, DataError):
            assert str(folder) in str(faces)
        else:
            assert contents(faces).items() <= true.items()
            assert len(faces) + len({skip.path for skip in faces.skipped}) >= len(true)
        shutil.rmtree(folder)

    @given(draw=st.data())
    @settings(max_examples=50)
    def test_of_the_records_of_a_set_without_names(
        self, face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, suffix: str, draw: st.DataObject
    ):
        folder = tmp_path_factory.mktemp("damaged") / "set"
        ours = shutil.ignore_patterns("*.ppfr-index", "*.names.csv")
        shutil.copytree(face_sets[suffix].parent, folder, ignore=ours)
        damage(draw, [file for file in folder.rglob("*") if file.suffix in {".tfrecord", ".rec", ".idx"}])
        true = {pixels for _, pixels in contents(open_faces(face_sets[suffix], size=16)).values()}
        faces = caught(lambda: open_faces(folder / face_sets[suffix].name, size=16))
        if isinstance(faces, DataError):
            assert str(folder) in str(faces)
        elif suffix == ".txt":
            # RecordIO has no checksums: of a damaged image that decodes, only the names file can tell
            assert {image.tobytes() for image in faces.images()} <= true
        shutil.rmtree(folder)

    @given(draw=st.data())
    @settings(max_examples=50)
    def test_of_the_compiled_index(self, indexed_sets: dict[str, Path], suffix: str, draw: st.DataObject):
        path = indexed_sets[suffix]
        before = index_of(path).read_bytes()
        damage(draw, [index_of(path)])
        faces = open_faces(path, size=16, cache_bytes=0)
        assert contents(faces) == contents(open_faces(path, size=16))
        assert len(faces) == 8
        index_of(path).write_bytes(before)

    @given(draw=st.data())
    @settings(max_examples=50)
    def test_of_records_while_the_set_is_open(self, indexed_sets: dict[str, Path], suffix: str, draw: st.DataObject):
        path = indexed_sets[suffix]
        faces = open_faces(path, size=16, cache_bytes=0)
        true = faces.images()
        data = next(file for file in path.parent.rglob("*") if file.suffix in {".tfrecord", ".rec"})
        before, status = data.read_bytes(), data.stat()
        damage(draw, [data])
        for row in range(len(faces)):
            image = caught(lambda row=row: faces.image(row))
            if isinstance(image, DataError):
                assert f"{data.name}, byte" in str(image)
            else:
                np.testing.assert_array_equal(image, true[row])
        data.write_bytes(before)
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))


@given(draw=st.data())
@settings(max_examples=60)
def test_damage_to_the_index_of_images(
    face_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
):
    """The other layout of TFRecord, `NAME/NAME.index`: its names tell the people; checksums tell wrong positions."""
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(face_sets[".txt"].parent, folder, ignore=shutil.ignore_patterns("*.ppfr-index", "*.names.csv"))
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
