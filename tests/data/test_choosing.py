from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppfr.data.detection.align import template
from ppfr.data.detection.detector import Detection
from ppfr.data.preparation.choosing import Annotated, Choice, Refusal, open_chooser
from ppfr.data.preparation.photographs import Photograph
from ppfr.util.errors import DataError

PHOTO = Photograph("a/1.jpg", "a")
SIZE = (400, 300)


def face(left: float, top: float, side: float) -> Detection:
    return Detection(np.array([left, top, left + side, top + side]), 0.9, template() + np.array([left, top]))


class TestLargest:
    @pytest.mark.parametrize(
        ("faces", "best"),
        [
            ([face(0, 0, 60), face(150, 100, 80)], 1),
            # of two alike the one nearer the centre
            ([face(300, 100, 80), face(170, 100, 80)], 1),
            # somewhat smaller but in the middle, instead of in the corner
            ([face(310, 210, 90), face(160, 110, 80)], 1),
            # a face in a picture on the wall behind
            ([face(60, 80, 140), face(190, 140, 20)], 0),
        ],
    )
    def test_large_and_central(self, faces: list[Detection], best: int):
        assert open_chooser("largest")(PHOTO, faces, SIZE) == ([Choice(faces[best], "a")], [])
        assert open_chooser("largest")(PHOTO, faces[::-1], SIZE) == ([Choice(faces[best], "a")], [])

    @pytest.mark.parametrize("name", ["largest", "all"])
    def test_none(self, name: str):
        assert open_chooser(name)(PHOTO, [], SIZE) == ([], [Refusal("no face found")])


def test_all_from_left_to_right():
    faces = [face(200, 0, 50), face(10, 90, 50), face(90, 5, 50)]
    chosen, refused = open_chooser("all")(PHOTO, faces, SIZE)
    assert [choice.face for choice in chosen] == [faces[1], faces[2], faces[0]]
    assert [choice.identity for choice in chosen] == ["a"] * 3
    assert refused == []


class TestAnnotated:
    @pytest.fixture
    def chooser(self, tmp_path: Path) -> Annotated:
        lines = ["path,left,top,right,bottom,identity", "a/1.jpg,10,10,60,60,eve", "a/1.jpg,200,0,260,50,"]
        (tmp_path / "boxes.csv").write_text("\n".join([*lines, "b.jpg,0,0,9,9,zoe"]))
        return Annotated(tmp_path / "boxes.csv")

    def test_faces_at_the_boxes(self, chooser: Annotated):
        faces = [face(100, 100, 150), face(205, 0, 50), face(12, 8, 50)]
        chosen, refused = chooser(PHOTO, faces, SIZE)
        assert chosen == [Choice(faces[2], "eve"), Choice(faces[1], "a")]
        assert refused == []
        assert chooser.identities == {"eve", "zoe"}

    def test_what_is_not_there_is_told(self, chooser: Annotated):
        assert chooser(PHOTO, [face(100, 100, 50)], SIZE) == (
            [],
            [Refusal("no face at the annotated box", box) for box in ("10 10 60 60", "200 0 260 50")],
        )
        assert chooser(PHOTO, [], SIZE)[0] == []
        assert chooser(Photograph("other.jpg", "o"), [face(0, 0, 9)], SIZE) == ([], [Refusal("not annotated")])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,left,top,right,bottom\n", "annotates nothing"),
            ("path,left,top,right\na,1,2,3\n", "column bottom is missing"),
            ("path,left,top,right,bottom\na,1,2,x,4\n", "line 2: could not convert .*expected left, top"),
            ("path,left,top,right,bottom\na,1,2,1,4\n", r"line 2: box \[1.0, 2.0, 1.0, 4.0\]; expected left < right"),
            ("path,left,top,right,bottom\na,1,2,nan,4\n", "expected left < right"),
        ],
    )
    def test_files_that_cannot_be_meant(self, tmp_path: Path, text: str, message: str):
        (tmp_path / "boxes.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            open_chooser(str(tmp_path / "boxes.csv"))

    def test_an_unknown_choice(self):
        with pytest.raises(DataError, match=r"faces is 'biggest'; expected largest, all, or a CSV file of path,left"):
            open_chooser("biggest")
