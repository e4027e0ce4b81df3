"""A small set of faces in files, from which tests make sets of every format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppfr.data.formats.convert import convert
from support.recordio import RecordIOSet


def tiny_image(number: int, suffix: str = ".jpg") -> bytes:
    """16 x 16 pixels of noise, another for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    return cv2.imencode(suffix, noise)[1].tobytes()


@pytest.fixture(scope="session")
def image_bytes() -> Callable[..., bytes]:
    return tiny_image


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of three people; JPEG and PNG, one name that two people share."""
    root = tmp_path_factory.mktemp("source") / "faces"
    files = ("abe/1.jpg", "abe/2.png", "abe/3.jpg", "bea/1.jpg", "bea/b.PNG", "cyd/x.jpg", "cyd/y.jpg", "cyd/z.jpg")
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(tiny_image(number, Path(name).suffix.lower()))
    return root


@pytest.fixture(scope="session")
def face_sets(face_folder: Path) -> dict[str, Path]:
    """The same set in every format that is read, by its suffix; each in a folder of its own."""
    sets = {"": face_folder}
    for suffix in (".parquet", ".txt"):
        sets[suffix] = face_folder.parent / f"set{suffix}" / f"faces{suffix}"
        sets[suffix].parent.mkdir()
        convert(face_folder, sets[suffix])
    sets[".csv"] = face_folder.parent / "set.csv" / "faces.csv"
    shutil.copytree(face_folder, face_folder.parent / "set.csv" / "faces")
    files = sorted(file for file in face_folder.rglob("*") if file.is_file())
    lines = [f"faces/{file.parent.name}/{file.name},{file.parent.name}" for file in files]
    sets[".csv"].write_text("\n".join(["path,identity", *lines]) + "\n")
    people = sorted({file.parent.name for file in files})
    records = RecordIOSet(face_folder.parent / "set.rec" / "faces.rec")
    for key, file in enumerate(files):
        records.add(key, (float(people.index(file.parent.name)),), file.read_bytes())
    sets[".rec"] = records.write()
    return sets
