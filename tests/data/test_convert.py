from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.data.formats import parquet, writers
from ppfr.data.formats.convert import CheckedImages, convert
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.parquet import SCHEMA
from ppfr.data.formats.writers import FolderWriter, ParquetWriter, TFRecordWriter
from ppfr.data.sources import open_faces
from ppfr.util.errors import DataError
from support.commands import ppfr_command

READ = ("", ".csv", ".parquet", ".txt", ".rec")
WRITTEN = ("", ".parquet", ".txt")


def entries(source: Path) -> list[tuple[str, str, bytes]]:
    """File name, identity and encoded bytes of every image, in order."""
    records = open_records(source)
    assert records.skipped == []
    return [
        (Path(records.names[row]).name, records.identities[records.labels[row]], records.data(row))
        for row in range(len(records))
    ]


def named(path: Path) -> Path:
    """Where a set has its names: TFRecord's are in the index of images, beside the one of labels."""
    return path.with_suffix("") / f"{path.stem}.index" if path.suffix == ".txt" else path


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("there", WRITTEN)
@pytest.mark.parametrize("here", READ)
def test_all_pairs_of_formats(face_sets: dict[str, Path], tmp_path: Path, here: str, there: str):
    done = convert(face_sets[here], tmp_path / f"out{there}", strict=True)
    source, made = entries(face_sets[here]), entries(named(tmp_path / f"out{there}"))
    if here in {".txt", ".rec"}:
        # they hold no names
        assert [entry[1:] for entry in made] == [entry[1:] for entry in source]
        assert {person for _, person, _ in made} == {"0", "1", "2"}
    else:
        assert made == source
    assert (done.images, done.people, done.skipped, done.resumed_at) == (8, 3, [], 0)
    assert done.image_bytes == sum(len(image) for _, _, image in source)
    one, other = open_faces(face_sets[here], size=16), open_faces(tmp_path / f"out{there}", size=16)
    np.testing.assert_array_equal(one.images(), other.images())
    np.testing.assert_array_equal(one.labels, other.labels)
    assert not list(tmp_path.glob(".*"))


def test_any_people_and_names_in_parquet(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable):
    names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\r\n"), min_size=1, max_size=8)
    names = names.map(str.strip).filter(lambda name: name not in {"", ".", ".."})

    @given(people=st.lists(names, min_size=1, max_size=8))
    @settings(max_examples=25)
    def check(people: list[str]) -> None:
        root = tmp_path_factory.mktemp("any")
        rows = ["path,identity"]
        for row, person in enumerate(people):
            (root / f"{row}.png").write_bytes(image_bytes(row % 3, ".png"))
            rows.append(f'{row}.png,"{person.replace(chr(34), chr(34) * 2)}"')
        (root / "list.csv").write_text("\n".join(rows) + "\n")
        convert(root / "list.csv", root / "set.parquet", strict=True)
        assert entries(root / "set.parquet") == entries(root / "list.csv")
        assert [person for _, person, _ in entries(root / "set.parquet")] == people
        shutil.rmtree(root)

    check()


def test_any_people_and_names_in_folders(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable):
    """Folders hold fewer names than records do, and sort them."""
    letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"], exclude_characters="/\\.")
    names = st.text(letters, min_size=1, max_size=8)

    @given(images=st.dictionaries(st.tuples(names, names), st.integers(0, 3), min_size=1, max_size=8))
    @settings(max_examples=25)
    def check(images: dict[tuple[str, str], int]) -> None:
        root = tmp_path_factory.mktemp("any")
        for (person, name), number in images.items():
            (root / "in" / person).mkdir(parents=True, exist_ok=True)
            (root / "in" / person / f"{name}.png").write_bytes(image_bytes(number, ".png"))
        convert(root / "in", root / "out", strict=True)
        expected = sorted((f"{name}.png", person, image_bytes(n, ".png")) for (person, name), n in images.items())
        assert sorted(entries(root / "out")) == expected
        shutil.rmtree(root)

    check()


class TestNames:
    def test_of_files_that_two_folders_share(self, tmp_path: Path, image_bytes: Callable[..., bytes]):
        for row, name in enumerate(("a/x.png", "b/x.png", "c/x-1.png")):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(image_bytes(row, ".png"))
        lines = ["path,identity", "a/x.png,one", "b/x.png,one", "c/x-1.png,one"]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        convert(tmp_path / "list.csv", tmp_path / "out")
        assert sorted(file.name for file in (tmp_path / "out" / "one").iterdir()) == ["x-1-.png", "x-1.png", "x.png"]
        assert (tmp_path / "out/one/x-1.png").read_bytes() == image_bytes(2, ".png")

    @pytest.mark.parametrize("suffix", WRITTEN)
    def test_that_are_not_utf8(self, tmp_path: Path, suffix: str, image_bytes: Callable[..., bytes]):
        odd = os.fsdecode(b"M\xfcller.png")
        (tmp_path / "in" / "abe").mkdir(parents=True)
        for row, name in enumerate(("a.png", odd, "\u00fc.png")):
            (tmp_path / "in" / "abe" / name).write_bytes(image_bytes(row, ".png"))
        before = entries(tmp_path / "in")
        done = convert(tmp_path / "in", tmp_path / f"out{suffix}")
        assert (done.images, done.skipped) == (3, [])
        # Parquet's strings are UTF-8: there the file is named by its number
        kept = [
            (f"{row:08d}.png" if suffix == ".parquet" and entry[0] == odd else entry[0], *entry[1:])
            for row, entry in enumerate(before)
        ]
        assert entries(named(tmp_path / f"out{suffix}")) == kept
        assert len(open_faces(tmp_path / f"out{suffix}", size=16)) == 3

    def test_of_images_without_any(self, face_sets: dict[str, Path], tmp_path: Path):
        convert(face_sets[".rec"], tmp_path / "out")
        found = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*"))
        assert found[:3] == ["0/00000000.jpg", "0/00000001.png", "0/00000002.jpg"]

    @pytest.mark.parametrize("person", ["..", ".hidden", "a//b", "tab\there", "x" * 256, "back\\slash"])
    def test_that_no_folder_can_have(self, person: str):
        with pytest.raises(DataError, match=r"cannot be the name of a folder; convert to \.parquet"):
            FolderWriter.check([person])

    def test_that_no_folder_can_have_together(self):
        with pytest.raises(DataError, match="'a/b' would lie in the folder of identity 'a'"):
            FolderWriter.check(["a", "a/b"])
        FolderWriter.check(["a/b", "a/c", "ab"])

    def test_a_person_without_a_name(self):
        with pytest.raises(DataError, match="an identity has no name"):
            TFRecordWriter.check([""])

    def test_groups_of_people(self, face_folder: Path, tmp_path: Path):
        shutil.copytree(face_folder, tmp_path / "in" / "African")
        shutil.copytree(face_folder, tmp_path / "in" / "Asian")
        convert(tmp_path / "in", tmp_path / "set.parquet")
        convert(tmp_path / "set.parquet", tmp_path / "out")
        assert open_records(tmp_path / "set.parquet").identities[0] == "African/abe"
        assert files_of(tmp_path / "out") == files_of(tmp_path / "in")


class TestLayouts:
    def test_parquet_for_other_programs(self, face_folder: Path, tmp_path: Path):
        convert(face_folder, tmp_path / "set.parquet")
        table = pq.read_table(tmp_path / "set.parquet")
        assert table.schema.equals(SCHEMA)
        assert list(zip(table["identity"].to_pylist(), table["image"].to_pylist(), strict=True)) == [
            entry[1:] for entry in entries(face_folder)
        ]
        assert table["path"][0].as_py() == "abe/1.jpg"

    def test_row_groups(self, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(parquet, "_GROUP_ROWS", 3)
        convert(face_folder, tmp_path / "rows.parquet")
        monkeypatch.setattr(parquet, "_GROUP_BYTES", 1500)
        convert(face_folder, tmp_path / "bytes.parquet")
        for name, groups in (("rows.parquet", 3), ("bytes.parquet", 4)):
            assert pq.ParquetFile(tmp_path / name).num_row_groups == groups
            assert entries(tmp_path / name) == entries(face_folder)

    def test_parquet_that_is_another_programs(self, tmp_path: Path):
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "set.parquet")
        with pytest.raises(DataError, match="has the columns image; expected the Parquet file of faces that ppfr"):
            open_records(tmp_path / "set.parquet")
        (tmp_path / "set.parquet").write_bytes(b"no Parquet")
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            open_records(tmp_path / "set.parquet")

    def test_shards_and_both_indices(self, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(writers, "SHARD_BYTES", 2000)
        convert(face_folder, tmp_path / "set.txt")
        shards = sorted(file.name for file in (tmp_path / "set").glob("*.tfrecord"))
        assert shards[0] == "set-00000.tfrecord" and len(shards) > 2
        assert [image for *_, image in entries(tmp_path / "set.txt")] == [image for *_, image in entries(face_folder)]
        assert entries(tmp_path / "set" / "set.index") == entries(face_folder)
        last = (tmp_path / "set.txt").read_text().splitlines()[-1].split("\t")
        assert last[:2] == ["set", str(len(shards) - 1)]


class TestBroken:
    @pytest.fixture
    def source(self, face_folder: Path, tmp_path: Path) -> Path:
        shutil.copytree(face_folder, tmp_path / "in")
        (tmp_path / "in" / "abe" / "2.png").write_bytes(b"no image")
        (tmp_path / "in" / "bea" / "1.jpg").write_bytes(b"")
        (tmp_path / "in" / "bea" / "b.PNG").write_bytes(b"")
        return tmp_path / "in"

    @pytest.mark.parametrize("suffix", WRITTEN)
    def test_images_are_left_out_and_listed(self, source: Path, tmp_path: Path, suffix: str):
        done = convert(source, tmp_path / f"out{suffix}")
        assert (done.images, done.people) == (5, 2)
        assert [skip.reason for skip in done.skipped] == ["not an image that OpenCV can decode"] + ["empty file"] * 2
        assert [name for name, _, _ in entries(named(tmp_path / f"out{suffix}"))] == [
            "1.jpg",
            "3.jpg",
            "x.jpg",
            "y.jpg",
            "z.jpg",
        ]

    def test_strict(self, source: Path, tmp_path: Path):
        with pytest.raises(DataError, match=r"abe/2\.png: not an image"):
            convert(source, tmp_path / "out.txt", strict=True)
        assert not (tmp_path / "out.txt").exists()
        (source / "dan").mkdir()
        with pytest.raises(DataError, match=r"1 refused under strict; .*dan: identity without images"):
            convert(source, tmp_path / "out.txt", strict=True)

    def test_nothing_usable(self, tmp_path: Path):
        (tmp_path / "in" / "abe").mkdir(parents=True)
        (tmp_path / "in" / "abe" / "1.png").write_bytes(b"x")
        with pytest.raises(DataError, match="none of 1 images can be used"):
            convert(tmp_path / "in", tmp_path / "out")


class Stop(BaseException):
    """What nothing catches."""


def stop_at(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, count: int) -> None:
    """Interrupt at call `count`, counted from 1, of a method."""
    call, left = getattr(kind, method), [count]

    def stops(self: object, *arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        return call(self, *arguments)

    monkeypatch.setattr(kind, method, stops)


KINDS = {"": FolderWriter, ".parquet": ParquetWriter, ".txt": TFRecordWriter}


class TestResume:
    @pytest.mark.parametrize("suffix", WRITTEN)
    @pytest.mark.parametrize(
        ("method", "count", "resumed"),
        [*(("__call__", n, 3 * (n - 1)) for n in (1, 2, 3)), *(("add", n, 8) for n in (1, 4, 8)), ("close", 1, 8)],
    )
    def test_what_follows_is_what_would_have_followed(
        self,
        face_folder: Path,
        tmp_path: Path,
        suffix: str,
        method: str,
        count: int,
        resumed: int,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(writers, "SHARD_BYTES", 2000)
        convert(face_folder, tmp_path / "whole" / f"out{suffix}", chunk=3)
        with monkeypatch.context() as patched:
            stop_at(patched, CheckedImages if method == "__call__" else KINDS[suffix], method, count)
            with pytest.raises(Stop):
                convert(face_folder, tmp_path / "stopped" / f"out{suffix}", chunk=3)
        assert [file.name for file in (tmp_path / "stopped").iterdir()] == [f".out{suffix}.converting"]
        done = convert(face_folder, tmp_path / "stopped" / f"out{suffix}", chunk=3)
        assert done.resumed_at == resumed
        assert done.images == 8
        assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")

    def test_after_a_stop_between_the_last_moves(
        self, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        import os

        moves: list[Path] = []
        replace = os.replace

        def once(source: Path, target: Path) -> None:
            if Path(target).parent == tmp_path / "out":
                if moves:
                    raise Stop
                moves.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", once)
        with pytest.raises(Stop):
            convert(face_folder, tmp_path / "out" / "set.txt")
        monkeypatch.undo()
        assert not (tmp_path / "out" / "set.txt").exists()
        assert convert(face_folder, tmp_path / "out" / "set.txt").images == 8
        assert entries(named(tmp_path / "out" / "set.txt")) == entries(face_folder)

    def test_after_a_real_kill(self, face_folder: Path, tmp_path: Path):
        script = (
            "import os, signal, sys\n"
            "from ppfr.data.formats import convert\n"
            "call, seen = convert.CheckedImages.__call__, []\n"
            "def deadly(self, rows):\n"
            "    seen.append(rows)\n"
            "    if len(seen) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return call(self, rows)\n"
            "convert.CheckedImages.__call__ = deadly\n"
            "convert.convert(sys.argv[1], sys.argv[2], chunk=2)\n"
        )
        killed = subprocess.run([sys.executable, "-c", script, face_folder, tmp_path / "set.txt"], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "set.txt").exists()
        assert convert(face_folder, tmp_path / "set.txt", chunk=2).resumed_at == 4
        assert entries(named(tmp_path / "set.txt")) == entries(face_folder)

    def test_from_another_source_is_refused(self, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        with monkeypatch.context() as patched:
            stop_at(patched, TFRecordWriter, "add", 5)
            with pytest.raises(Stop):
                convert(face_folder, tmp_path / "set.txt")
        shutil.copytree(face_folder, tmp_path / "other")
        with pytest.raises(DataError, match=r"\.set\.txt\.converting holds parts with another source; repeat"):
            convert(tmp_path / "other", tmp_path / "set.txt")
        (tmp_path / ".set.txt.converting" / "plan.json").write_text("{")
        with pytest.raises(DataError, match=r"plan\.json: damaged .*; remove .*\.set\.txt\.converting"):
            convert(face_folder, tmp_path / "set.txt")

    def test_while_another_process_writes(self, face_folder: Path, tmp_path: Path):
        (tmp_path / ".out.converting").mkdir()
        with (
            FileLock(tmp_path / ".out.converting" / "lock"),
            pytest.raises(DataError, match="another process is writing it"),
        ):
            convert(face_folder, tmp_path / "out")


class TestRefusals:
    @pytest.mark.parametrize("suffix", WRITTEN)
    def test_a_target_that_exists(self, face_sets: dict[str, Path], tmp_path: Path, suffix: str):
        convert(face_sets[""], tmp_path / f"out{suffix}")
        with pytest.raises(DataError, match="exists already; remove it or choose another name"):
            convert(face_sets[""], tmp_path / f"out{suffix}")

    @pytest.mark.parametrize("name", ["out.index", "out.tfrecord", "out.idx", "out.bin", "out.rec", "out.csv"])
    def test_a_target_that_names_no_set(self, face_folder: Path, tmp_path: Path, name: str):
        with pytest.raises(DataError, match=r"is not written; expected the name of a set: .*out\.parquet, .*out\.txt"):
            convert(face_folder, tmp_path / name)

    def test_a_source_that_is_none(self, tmp_path: Path):
        with pytest.raises(DataError, match="no such data set"):
            convert(tmp_path / "nothing.rec", tmp_path / "out")


def test_the_command_line(face_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(face_folder, tmp_path / "in")
    (tmp_path / "in" / "abe" / "1.jpg").write_bytes(b"")
    assert ppfr_command("convert", tmp_path / "in", tmp_path / "a.parquet") == 0
    said = capsys.readouterr()
    assert "Parquet, 7 images of 3 people" in said.out
    assert "abe/1.jpg: empty file" in said.err
    assert ppfr_command("convert", tmp_path / "a.parquet", tmp_path / "b.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "TFRecord"
    assert ppfr_command("convert", tmp_path / "in", tmp_path / "b.txt") == 1
    assert "exists already" in capsys.readouterr().err
    assert ppfr_command("convert", tmp_path / "in", tmp_path / "c.txt", "--strict") == 1
    assert "empty file" in capsys.readouterr().err
