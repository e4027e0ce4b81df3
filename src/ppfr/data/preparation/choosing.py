"""Which of the faces in a photograph are wanted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppfr.data.detection.detector import Detection, overlaps
from ppfr.data.formats.listings import read_csv
from ppfr.data.preparation.photographs import Photograph
from ppfr.util.errors import DataError
from ppfr.util.files import sha256_file

# the least overlap (IoU) at which a detected face is the annotated one: annotators and detectors disagree about
# foreheads, not about faces
_LEAST_OVERLAP = 0.3
_COLUMNS = ("path", "left", "top", "right", "bottom")


class Choice(NamedTuple):
    """A chosen face and whom it shows."""

    face: Detection
    identity: str


class Refusal(NamedTuple):
    """Why a photograph, or a face in it, gives no crop: the kind of reason, and what there is to know."""

    reason: str
    detail: str = ""


NO_FACE = "no face found"
Size = tuple[int, int]
Chosen = tuple[list[Choice], list[Refusal]]


class Chooser(ABC):
    """Picks the wanted ones among the faces of a photograph."""

    key: str
    """Another for every chooser that may choose differently."""

    identities: frozenset[str] = frozenset()
    """People that it knows beside those of the photographs."""

    @abstractmethod
    def __call__(self, photo: Photograph, faces: Sequence[Detection], size: Size) -> Chosen:
        """From a photograph, its faces and its (width, height): the faces chosen, and what is refused."""


class Largest(Chooser):
    """The face with the largest area, where area counts in full at the centre and not at all in a corner.

    Scripts around FaceNet and InsightFace take off twice the squared distance in pixels instead, so that a face in a
    picture on the wall wins over the large one beside the centre.
    """

    key = "largest"

    def __call__(self, photo: Photograph, faces: Sequence[Detection], size: Size) -> Chosen:
        if not faces:
            return [], [Refusal(NO_FACE)]
        centre = np.array(size) / 2

        def prominence(face: Detection) -> float:
            away = (face.box[:2] + face.box[2:]) / 2 - centre
            return face.area * (1 - min(1.0, float((away**2).sum() / (centre**2).sum())))

        return [Choice(max(faces, key=prominence), photo.identity)], []


class Everyone(Chooser):
    """All faces, from the left to the right."""

    key = "all"

    def __call__(self, photo: Photograph, faces: Sequence[Detection], size: Size) -> Chosen:
        ordered = sorted(faces, key=lambda face: tuple(face.box.tolist()))
        return [Choice(face, photo.identity) for face in ordered], [] if faces else [Refusal(NO_FACE)]


class Annotated(Chooser):
    """The faces at the boxes of an annotation file; photographs that it does not name give none."""

    def __init__(self, path: Path) -> None:
        """Read a CSV with the columns path (below the source), left, top, right, bottom and, if wanted, identity.

        Boxes are in pixels of the upright photograph; one with several has several lines. Raises DataError.
        """
        self.boxes: dict[str, list[tuple[list[float], str]]] = {}
        for line, row in read_csv(path, _COLUMNS, optional=("identity",)):
            try:
                box = [float(row[side]) for side in _COLUMNS[1:]]
            except ValueError as error:
                raise DataError(f"{path}, line {line}: {error}; expected left, top, right, bottom in pixels") from error
            if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
                raise DataError(f"{path}, line {line}: box {box}; expected left < right and top < bottom")
            self.boxes.setdefault(row["path"], []).append((box, row["identity"]))
        if not self.boxes:
            raise DataError(f"{path}: annotates nothing; expected lines of {','.join(_COLUMNS)} below the header")
        self.key = sha256_file(path)
        self.identities = frozenset(identity for faces in self.boxes.values() for _, identity in faces if identity)

    def __call__(self, photo: Photograph, faces: Sequence[Detection], size: Size) -> Chosen:
        if photo.name not in self.boxes:
            return [], [Refusal("not annotated")]
        chosen: list[Choice] = []
        refused: list[Refusal] = []
        for box, identity in self.boxes[photo.name]:
            shared = overlaps(np.array(box), np.array([face.box for face in faces]).reshape(-1, 4))
            if shared.size and shared.max() >= _LEAST_OVERLAP:
                chosen.append(Choice(faces[int(shared.argmax())], identity or photo.identity))
            else:
                refused.append(Refusal("no face at the annotated box", " ".join(f"{edge:g}" for edge in box)))
        return chosen, refused


def open_chooser(faces: str) -> Chooser:
    """`largest`, `all`, or the path of an annotation file; raises DataError."""
    named = {kind.key: kind() for kind in (Largest, Everyone)}
    if faces in named:
        return named[faces]
    if not Path(faces).is_file():
        raise DataError(f"faces is {faces!r}; expected {', '.join(named)}, or a CSV file of {','.join(_COLUMNS)}")
    return Annotated(Path(faces))
