"""Preparing with a detector that finds drawn faces; see test_detection.py for real ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from filelock import FileLock

from ppfr.data.detection.align import template
from ppfr.data.detection.detector import Detection, Detector
from ppfr.data.detection.detectors import DETECTORS
from ppfr.data.formats.listings import open_records
from ppfr.data.images import Images
from ppfr.data.preparation import cutting
from ppfr.data.preparation import prepare as module
from ppfr.data.preparation.choosing import Everyone, open_chooser
from ppfr.data.preparation.cutting import Cutter
from ppfr.data.preparation.prepare import Preparation, prepare
from ppfr.data.sources import open_faces
from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from support.commands import ppfr_command
from support.processes import on_ranks


class DrawnFaces(Detector):
    """Finds bright squares on a dark ground; a face fills its square as the template does a crop."""

    name = "drawn"
    model = "0" * 64

    def __init__(self, model: Path | None = None) -> None:
        self.user: int | None = None

    def detect(self, image: Images) -> list[Detection]:
        assert self.user is None, "two threads use one detector"
        self.user = threading.get_ident()
        try:
            return self.find(image)
        finally:
            self.user = None

    def find(self, image: Images) -> list[Detection]:
        if image.mean() > 250:
            raise cv2.error("white")
        _, _, regions, _ = cv2.connectedComponentsWithStats((image.max(2) > 60).astype(np.uint8))
        found = []
        for left, top, width, height, _ in regions[1:].tolist():
            box = np.array([left, top, left + width, top + height], np.float64)
            found.append(Detection(box, 0.9, template() * (width / 112) + box[:2]))
        return found


def draw(*squares: tuple[int, int, int], size: tuple[int, int] = (200, 300), seed: int = 0) -> np.ndarray:
    """A dark picture with bright squares (left, top, side), each with a pattern of its own."""
    image = np.zeros((*size, 3), np.uint8)
    rng = np.random.default_rng(seed)
    for left, top, side in squares:
        pattern = rng.integers(80, 256, (4, 4, 3), np.uint8)
        image[top : top + side, left : left + side] = cv2.resize(pattern, (side, side), interpolation=cv2.INTER_NEAREST)
    return image


def write(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = options.pop("suffix", path.suffix.lower())
    path.write_bytes(cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes())


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty photographs of five people, with some that give no face."""
    root = tmp_path_factory.mktemp("photos") / "album"
    for number in range(30):
        squares = [(20 + number, 30, 50 + number)]
        if number % 7 == 3:
            squares.append((200, 100, 45))
        write(root / f"p{number % 5}" / f"{number}.png", draw(*squares, seed=number))
    write(root / "p1" / "nobody.png", draw())
    write(root / "p2" / "tiny.png", draw((5, 5, 20)))
    write(root / "p3" / "white.png", np.full((20, 20, 3), 255, np.uint8))
    (root / "p4" / "zero.jpg").write_bytes(b"")
    (root / "p4" / "notes.txt").write_bytes(b"x")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def run(source: Path, target: Path, cut: Cutter | None = None, **options: Any) -> Preparation:
    return prepare(source, target, DrawnFaces, cut, **options)


def stop_at(monkeypatch: pytest.MonkeyPatch, what: str, count: int) -> None:
    """Interrupt preparing at call `count`, counted from 1, of `_table`, which ends a part, or `_add`, which writes."""
    where = cutting if what == "_table" else module
    function, left = getattr(where, what), [count]

    def stops(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(where, what, stops)


def assert_same(done: Preparation, whole: Preparation, folder: Path) -> None:
    """A run that was stopped, in `kept`, made what another made at one go, in `whole`."""
    assert (done.crops, done.people, done.refused) == (whole.crops, whole.people, whole.refused)
    first, second = (contents(folder / name) for name in ("kept", "whole"))
    assert first.keys() == second.keys()
    assert all(first[name] == second[name] for name in first if not name.endswith("summary.json"))
    assert not list((folder / "kept").glob(".*"))


@pytest.mark.parametrize("format", ["folder", "parquet", "tfrecord"])
class TestFormats:
    def test_the_set_opens_with_its_people(self, album: Path, tmp_path: Path, format: str):
        done = run(album, tmp_path / "out", format=format)
        faces = open_faces(done.target)
        assert faces.identities == [f"{'' if format == 'tfrecord' else 'p'}{number}" for number in range(5)]
        assert np.bincount(faces.labels).tolist() == [6] * 5
        assert (done.photographs, done.crops, done.people) == (34, 30, 5)
        assert done.refused == {"detector failed": 1, "face too small": 1, "no face found": 1, "unreadable": 1}
        assert done.ignored == {".txt": 1}
        assert not list(tmp_path.glob(".*"))

    def test_any_number_of_workers_writes_the_same_bytes(self, album: Path, tmp_path: Path, format: str):
        made = []
        for workers in (1, 2, 5):
            out = tmp_path / str(workers) / "here"
            run(album, out / "set", Cutter(Everyone()), format=format, workers=workers)
            made.append({name: data for name, data in contents(out).items() if "summary" not in name})
        assert len(made[0]) >= 4
        assert made[0] == made[1] == made[2]

    @pytest.mark.parametrize("chunk", [7, 34])
    def test_ranks_write_the_same_bytes(self, album: Path, tmp_path: Path, format: str, chunk: int):
        whole = run(album, tmp_path / "whole" / "out", format=format)

        def work() -> tuple[int, int]:
            ranks = Ranks.from_environment()
            done = run(album, tmp_path / "kept" / "out", format=format, chunk=chunk, workers=1, ranks=ranks)
            return done.photographs, done.crops

        assert on_ranks(2, work) == [(34, 30)] * 2
        assert_same(whole, whole, tmp_path)

    @pytest.mark.parametrize(
        ("what", "count", "resumed"),
        [
            *(("_table", 1, 0), ("_table", 3, 8), ("_table", 9, 32)),
            *(("_add", 1, 34), ("_add", 5, 34), ("_add", 34, 34)),
        ],
    )
    def test_what_follows_a_stop_is_what_would_have_followed(
        self,
        album: Path,
        tmp_path: Path,
        format: str,
        what: str,
        count: int,
        resumed: int,
        monkeypatch: pytest.MonkeyPatch,
    ):
        with monkeypatch.context() as patched:
            stop_at(patched, what, count)
            with pytest.raises(KeyboardInterrupt):
                run(album, tmp_path / "kept" / "out", format=format, chunk=4)
        assert [path.name for path in (tmp_path / "kept").iterdir() if not path.name.startswith(".")] == []
        done = run(album, tmp_path / "kept" / "out", format=format, chunk=4)
        assert done.resumed_at == resumed
        whole = run(album, tmp_path / "whole" / "out", format=format)
        assert_same(done, whole, tmp_path)

    def test_killed_while_the_names_are_given(
        self, album: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
    ):
        replace, left = os.replace, [2]

        def stops(here: Path, there: Path) -> None:
            if Path(there).parent == tmp_path:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            replace(here, there)

        with monkeypatch.context() as patched:
            patched.setattr(module.os, "replace", stops)
            with pytest.raises(KeyboardInterrupt):
                run(album, tmp_path / "out", format=format)
        done = run(album, tmp_path / "out", format=format)
        assert (done.resumed_at, done.crops) == (34, 30)
        assert len(open_faces(done.target)) == 30


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[1:3]
    import test_prepare
    from ppfr.data.preparation import cutting, prepare
    from ppfr.distributed.process_group import joined
    with joined() as ranks:
        seen = []
        def deadly(function):
            def call(*arguments):
                seen.append(arguments)
                if len(seen) == int(sys.argv[6]) and ranks.rank == ranks.world - 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)
            return call
        where = cutting if sys.argv[5] == "_table" else prepare
        setattr(where, sys.argv[5], deadly(getattr(where, sys.argv[5])))
        test_prepare.run(Path(sys.argv[3]), Path(sys.argv[4]), chunk=4, workers=2, ranks=ranks)
""")


def killed(folder: Path, album: Path, kept: Path, what: str, count: int, *launch: str) -> int:
    """Prepare in a process, or several, of which the last kills itself at call `count` of a function; its status."""
    script = folder / "killed.py"
    script.write_text(KILLED)
    places = [Path(__file__).parent, Path(__file__).parents[1]]
    command = [sys.executable, *launch, script, *places, album, kept, what, count]
    return subprocess.run([str(part) for part in command], check=False, capture_output=True).returncode


def test_a_killed_run_goes_on_to_the_same_bytes(album: Path, tmp_path: Path):
    kept = tmp_path / "kept" / "out.txt"
    assert killed(tmp_path, album, kept, "_table", 3) == -signal.SIGKILL
    assert killed(tmp_path, album, kept, "_add", 6) == -signal.SIGKILL
    assert [path.name for path in kept.parent.iterdir() if not path.name.startswith(".")] == []
    assert len(list(kept.parent.glob(".*.preparing/*.parquet"))) == 9
    done = run(album, kept, chunk=4)
    assert done.resumed_at == 34
    whole = run(album, tmp_path / "whole" / "out.txt")
    assert_same(done, whole, tmp_path)


@pytest.mark.slow
def test_a_killed_rank_under_torchrun_and_one_process_goes_on(album: Path, tmp_path: Path):
    kept = tmp_path / "kept" / "out.parquet"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
    assert killed(tmp_path, album, kept, "_table", 2, *launch) == 1
    # the last rank's first piece; the other rank may have got further
    assert (kept.parent / ".out.parquet.preparing" / "00000001.parquet").exists()
    assert not (kept.parent / ".out.parquet.preparing" / "00000003.parquet").exists()
    done = run(album, kept, chunk=4)
    assert 4 <= done.resumed_at < 34
    whole = run(album, tmp_path / "whole" / "out.parquet")
    assert_same(done, whole, tmp_path)


def test_a_damaged_part_is_named(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        stop_at(patched, "_add", 1)
        with pytest.raises(KeyboardInterrupt):
            run(album, tmp_path / "out", chunk=4)
    part = tmp_path / ".out.preparing" / "00000002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"00000002\.parquet: damaged .*; remove it, and its rows are done again"):
        run(album, tmp_path / "out", chunk=4)
    part.unlink()
    assert run(album, tmp_path / "out", chunk=4).resumed_at == 30


class TestCrops:
    def test_a_crop_shows_the_face_and_faces_csv_says_whence(self, tmp_path: Path):
        image = draw((60, 40, 112))
        write(tmp_path / "in" / "a" / "x.png", image)
        done = run(tmp_path / "in", tmp_path / "out")
        [line] = table(Path(done.report) / "faces.csv")
        assert (line["path"], line["identity"], line["photograph"]) == ("a/x.jpg", "a", "a/x.png")
        assert [line[name] for name in ("score", "left", "top", "right", "bottom")] == [
            "0.9000",
            "60.00",
            "40.00",
            "172.00",
            "152.00",
        ]
        assert [float(line["x1"]), float(line["y1"])] == pytest.approx(template()[0] + [60, 40], abs=0.01)
        crop = open_faces(tmp_path / "out").image(0)
        assert np.abs(crop.astype(int) - image[40:152, 60:172]).mean() < 4

    def test_sizes(self, tmp_path: Path):
        write(tmp_path / "in" / "a" / "x.png", draw((60, 40, 112)))
        run(tmp_path / "in", tmp_path / "out", Cutter(size=128))
        small, large = (open_faces(tmp_path / "out", size=size).image(0) for size in (112, 128))
        assert large.shape == (128, 128, 3) and small.shape == (112, 112, 3)
        with pytest.raises(DataError, match="size is 96; expected 112 or 128"):
            Cutter(size=96)

    def test_all_faces_and_annotated_ones(self, tmp_path: Path):
        write(tmp_path / "in" / "a" / "x.png", draw((150, 10, 60), (10, 20, 50)))
        write(tmp_path / "in" / "a" / "y.png", draw((10, 20, 50)))
        done = run(tmp_path / "in", tmp_path / "all.parquet", Cutter(Everyone()))
        assert list(open_records(tmp_path / "all.parquet").names) == [f"a/{n}.jpg" for n in ("x", "x-2", "y")]
        assert done.refused == {}
        assert done.thumbnails == "nothing was refused"
        (tmp_path / "boxes.csv").write_text(
            "path,left,top,right,bottom,identity\na/x.png,9,19,61,71,eve\na/x.png,0,100,50,150,bob\n"
        )
        done = run(tmp_path / "in", tmp_path / "some.parquet", Cutter(open_chooser(str(tmp_path / "boxes.csv"))))
        some = open_records(tmp_path / "some.parquet")
        assert (list(some.names), some.identities) == (["eve/x.jpg"], ["eve"])
        assert done.refused == {"no face at the annotated box": 1, "not annotated": 1}

    def test_names_that_meet(self, tmp_path: Path):
        names = ["x.png", "X.jpg", "x-2.png", "x.bmp", "x\n.png", "x_.png"]
        for seed, name in enumerate(names):
            write(tmp_path / "in" / "a" / name, draw((60, 40, 60), seed=seed))
        run(tmp_path / "in", tmp_path / "out")
        made = [path.name for path in (tmp_path / "out" / "a").iterdir()]
        assert len(made) == len(names) == len({name.casefold() for name in made})
        sources = {line["path"]: line["photograph"] for line in table(tmp_path / "out.prepared" / "faces.csv")}
        assert sorted(sources.values()) == sorted(f"a/{name}" for name in names)
        for seed, name in enumerate(names):
            [made_from] = [path for path, source in sources.items() if source == f"a/{name}"]
            image = cv2.imread(str(tmp_path / "out" / made_from))[:, :, ::-1]
            expected = cv2.resize(draw((60, 40, 60), seed=seed)[40:100, 60:120], (112, 112))
            assert np.abs(image.astype(int) - expected).mean() < 8


class TestOddFiles:
    """Every one gives its face, or is named with the reason."""

    FACE = draw((60, 40, 112))

    def prepared(self, root: Path) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, str]]]:
        """Crops, and reasons with details, by the photograph's name."""
        write(root / "in" / "p" / "good.png", self.FACE)
        run(root / "in", root / "out")
        crops = {}
        for line in table(root / "out.prepared" / "faces.csv"):
            crops[line["photograph"][2:]] = cv2.imread(str(root / "out" / line["path"]))[:, :, ::-1]
        refused = table(root / "out.prepared" / "refused.csv")
        return crops, {line["photograph"][2:]: (line["reason"], line["detail"]) for line in refused}

    def test_kinds_of_pictures(self, tmp_path: Path):
        folder = tmp_path / "in" / "p"
        write(folder / "grey.png", self.FACE.max(2))
        write(
            folder / "alpha.png",
            np.dstack([self.FACE, np.full(self.FACE.shape[:2], 9, np.uint8)])[..., [2, 1, 0, 3]][..., ::-1],
        )
        write(folder / "sixteen.png", self.FACE.astype(np.uint16) * 257)
        write(folder / "sixteen.tiff", self.FACE.astype(np.uint16) * 257)
        write(folder / "wrong suffix.jpg", self.FACE, suffix=".webp")
        for suffix in (".jpg", ".bmp", ".webp", ".tif", ".jp2"):
            write(folder / f"plain{suffix}", self.FACE)
        crops, refused = self.prepared(tmp_path)
        assert refused == {}
        assert len(crops) == 11
        for name, crop in crops.items():
            expected = crops["good.png"].astype(int)
            if name == "grey.png":
                expected = np.repeat(expected.max(2, keepdims=True), 3, axis=2)
            assert np.abs(crop - expected).mean() < 12, name

    def test_cmyk(self, tmp_path: Path):
        pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK file")
        (tmp_path / "in" / "p").mkdir(parents=True)
        pillow.fromarray(self.FACE).convert("CMYK").save(tmp_path / "in" / "p" / "print.jpg", quality=95)
        pillow.fromarray(self.FACE).convert("CMYK").save(tmp_path / "in" / "p" / "print.tif")
        crops, refused = self.prepared(tmp_path)
        assert refused == {}
        for name in ("print.jpg", "print.tif"):
            assert np.abs(crops[name].astype(int) - crops["good.png"]).mean() < 12

    def test_all_orientations(self, tmp_path: Path):
        pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the EXIF data")
        folder = tmp_path / "in" / "p"
        folder.mkdir(parents=True)
        back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that a viewer's turn undoes
        for orientation, turn in back.items():
            exif = pillow.Exif()
            exif[0x0112] = orientation
            stored = pillow.fromarray(self.FACE).transpose(pillow.Transpose(turn))
            stored.save(folder / f"{orientation}.jpg", exif=exif, quality=95)
        crops, refused = self.prepared(tmp_path)
        assert refused == {}
        for orientation in back:
            assert np.abs(crops[f"{orientation}.jpg"].astype(int) - crops["good.png"]).mean() < 8, orientation

    def test_files_that_are_no_pictures(self, tmp_path: Path):
        folder = tmp_path / "in" / "p"
        whole = {
            suffix: cv2.imencode(suffix, self.FACE)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".webp", ".tif")
        }
        folder.mkdir(parents=True)
        (folder / "zero.jpg").write_bytes(b"")
        (folder / "text.png").write_text("not a picture")
        (folder / "folder.jpg").mkdir()
        (folder / "dangling.jpg").symlink_to("nowhere.jpg")
        for suffix, data in whole.items():
            (folder / f"half{suffix}").write_bytes(data[: len(data) // 2])
        damaged = bytearray(whole[".jpg"])
        damaged[-300:-260] = bytes([0x55, 0xFF, 0x01, 0x37] * 10)
        (folder / "damaged.jpg").write_bytes(bytes(damaged))
        crops, refused = self.prepared(tmp_path)
        assert set(crops) == {"good.png"}
        assert {reason for reason, _ in refused.values()} == {"unreadable"}
        details = {name: detail for name, (_, detail) in refused.items()}
        assert details["zero.jpg"] == "empty file"
        assert details["dangling.jpg"] == "file not found"
        assert details["text.png"] == "not an image that OpenCV can decode"
        assert details["half.jpg"] == details["half.png"] == "cut short: the end of the image is missing"
        assert details["damaged.jpg"].startswith("damaged: Corrupt JPEG data")
        assert set(details) == {
            *("zero.jpg", "text.png", "dangling.jpg", "damaged.jpg"),
            *(f"half{suffix}" for suffix in whole),
        }

    NAMES = (
        "line\nbreak.png",
        "quote\"'`.png",
        "comma, space .png",
        " leading.png",
        "Łódź-写真-😀.png",
        "-dash.png",
        "per%cent;semi&.png",
        "back\\slash.png",
        "[red]markup[bold].png",
        "x" * 230 + ".png",
        os.fsdecode(b"not-utf8-\xff\xfe.png"),
    )

    @pytest.mark.parametrize("format", ["folder", "parquet", "tfrecord"])
    def test_names(self, tmp_path: Path, format: str):
        for seed, name in enumerate(self.NAMES):
            write(tmp_path / "in" / "p" / name, draw((60, 40, 60), seed=seed))
            write(tmp_path / "in" / "p" / ("no" + name), draw())
        done = run(tmp_path / "in", tmp_path / "out", format=format)
        assert done.crops == len(open_records(done.target)) == len(self.NAMES)
        assert open_faces(done.target).skipped == []
        assert [f"p/{name}" for name in sorted(self.NAMES)] == sorted(
            line["photograph"] for line in table(tmp_path / "out.prepared" / "faces.csv")
        )
        assert len(table(tmp_path / "out.prepared" / "refused.csv")) == len(self.NAMES)


class TestReport:
    def test_what_was_refused_and_why(self, album: Path, tmp_path: Path):
        done = run(album, tmp_path / "out.parquet")
        assert [tuple(line.values()) for line in table(tmp_path / "out.prepared" / "refused.csv")] == [
            ("p1/nobody.png", "no face found", ""),
            ("p2/tiny.png", "face too small", "20 pixels"),
            ("p3/white.png", "detector failed", "white"),
            ("p4/zero.jpg", "unreadable", "empty file"),
        ]
        sheet = cv2.imread(done.thumbnails)
        assert sheet.shape == (192, 4 * 160, 3)
        # the small square, enlarged; nothing to see of the empty file
        assert sheet[30:40, 160:170].max() > 60
        assert (sheet[:160, 480:] == 96).all()

    def test_many_refusals_fit_one_sheet(self, tmp_path: Path):
        (tmp_path / "in" / "p").mkdir(parents=True)
        write(tmp_path / "in" / "p" / "good.png", draw((60, 40, 60)))
        for number in range(100):
            (tmp_path / "in" / "p" / f"{number}.jpg").write_bytes(b"")
        done = run(tmp_path / "in", tmp_path / "out")
        assert cv2.imread(done.thumbnails).shape == (10 * 192, 6 * 160, 3)
        assert done.refused == {"unreadable": 100}

    def test_no_thumbnails_in_a_repository(self, album: Path, tmp_path: Path):
        (tmp_path / ".git").mkdir()
        done = run(album, tmp_path / "data" / "out.parquet")
        assert "not drawn" in done.thumbnails and "Git repository" in done.thumbnails
        assert not list(tmp_path.rglob("*.png"))

    def test_the_summary_is_on_disk(self, album: Path, tmp_path: Path):
        done = run(album, tmp_path / "out")
        summary = json.loads((tmp_path / "out.prepared" / "summary.json").read_bytes())
        assert Preparation(**summary, resumed_at=done.resumed_at, seconds=done.seconds) == done


class TestRefusals:
    def test_no_face_at_all(self, tmp_path: Path):
        write(tmp_path / "in" / "a.png", draw())
        (tmp_path / "in" / "b.png").write_bytes(b"")
        with pytest.raises(DataError, match="none of 2 photographs gives a face; no face found 1, unreadable 1"):
            run(tmp_path / "in", tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]

    @pytest.mark.parametrize("taken", ["out", "out.txt", "out.prepared"])
    def test_a_target_that_exists(self, album: Path, tmp_path: Path, taken: str):
        (tmp_path / taken).write_bytes(b"")
        with pytest.raises(DataError, match=rf"{taken}: exists already; remove it or choose another name"):
            run(album, tmp_path / "out.txt")

    def test_a_target_among_the_photographs(self, album: Path, tmp_path: Path):
        source = shutil.copytree(album, tmp_path / "in")
        with pytest.raises(DataError, match="lies among the photographs"):
            run(source, source / "out")
        (source / "list.csv").write_text("path,identity\np0/0.png,x\n")
        assert run(source / "list.csv", source / "out").crops == 1

    def test_other_photographs_or_settings_do_not_go_on(
        self, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        source = shutil.copytree(album, tmp_path / "in")
        with monkeypatch.context() as patched:
            stop_at(patched, "_add", 20)
            with pytest.raises(KeyboardInterrupt):
                run(source, tmp_path / "out", chunk=3)
        others = {"size": Cutter(size=128), "choice of faces": Cutter(Everyone()), "smallest face": Cutter(smallest=1)}
        for name, cut in others.items():
            with pytest.raises(DataError, match=rf"\.out\.preparing holds parts with another {name}; repeat"):
                run(source, tmp_path / "out", cut, chunk=3)
        with pytest.raises(DataError, match="holds parts with another chunk; repeat"):
            run(source, tmp_path / "out")
        write(source / "p0" / "new.png", draw())
        with pytest.raises(DataError, match="holds parts with another photographs; repeat"):
            run(source, tmp_path / "out", chunk=3)
        (source / "p0" / "new.png").unlink()
        file = tmp_path / ".out.preparing" / "plan.json"
        kept = file.read_bytes()
        file.write_bytes(kept[:-5])
        with pytest.raises(DataError, match=r"plan\.json: damaged .*; remove .*\.out\.preparing to start again"):
            run(source, tmp_path / "out", chunk=3)
        file.write_bytes(kept)
        assert run(source, tmp_path / "out", chunk=3).resumed_at == 34

    def test_while_another_process_writes(self, album: Path, tmp_path: Path):
        (tmp_path / ".out.preparing").mkdir()
        with (
            FileLock(tmp_path / ".out.preparing" / "lock"),
            pytest.raises(DataError, match="another process is writing it"),
        ):
            run(album, tmp_path / "out")

    @pytest.mark.parametrize(
        ("target", "format", "message"),
        [
            ("out.rec", None, r"\.rec is not written; expected the name of a set: .*out\.parquet"),
            ("out", "rec", "format is 'rec'; expected one of folder, parquet, tfrecord"),
            ("out.parquet", "tfrecord", "has the suffix of another format than tfrecord"),
        ],
    )
    def test_formats(self, album: Path, tmp_path: Path, target: str, format: str | None, message: str):
        with pytest.raises(DataError, match=message):
            run(album, tmp_path / target, format=format)

    def test_a_person_whose_name_cannot_be_a_folder(self, tmp_path: Path):
        write(tmp_path / "in" / "an\nna" / "x.png", draw((60, 40, 60)))
        with pytest.raises(DataError, match=r"identity 'an\\nna' cannot be the name of a folder; .* \.parquet"):
            run(tmp_path / "in", tmp_path / "out")
        assert run(tmp_path / "in", tmp_path / "out.parquet").people == 1
        assert open_faces(tmp_path / "out.parquet").identities == ["an\nna"]

    def test_a_person_whose_name_is_not_utf8(self, tmp_path: Path):
        write(tmp_path / "in" / os.fsdecode(b"M\xfcller") / "x.png", draw((60, 40, 60)))
        with pytest.raises(DataError, match=r"identity 'M\\udcfcller' is not UTF-8"):
            run(tmp_path / "in", tmp_path / "out.parquet")
        assert open_faces(run(tmp_path / "in", tmp_path / "out").target).identities == [os.fsdecode(b"M\xfcller")]


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(DETECTORS, "drawn", DrawnFaces)

    def test_as_typed(self, album: Path, tmp_path: Path, capsys: Any):
        options = ["--format", "parquet", "--detector", "drawn"]
        assert ppfr_command("prepare", album, "--out", tmp_path / "out", *options) == 0
        told = capsys.readouterr().out
        assert "out.parquet: Parquet, 30 faces of 5 people from 34 photographs" in told
        assert "left out: 1 unreadable" in told and "not looked at: 1 files .txt" in told

    def test_json(self, album: Path, tmp_path: Path, capsys: Any):
        options = ["--faces", "all", "--size", 128, "--min-face", 10, "--workers", 2, "--json", "--detector", "drawn"]
        assert ppfr_command("prepare", album, "--out", tmp_path / "out.txt", *options) == 0
        done = json.loads(capsys.readouterr().out)
        assert (done["format"], done["crops"], done["size"], done["smallest"]) == ("TFRecord", 35, 128, 10)

    def test_an_unknown_detector(self, album: Path, tmp_path: Path, capsys: Any):
        assert ppfr_command("prepare", album, "--out", tmp_path, "--detector", "dlib") == 1
        assert "unknown detector 'dlib'; expected one of yunet" in capsys.readouterr().err
