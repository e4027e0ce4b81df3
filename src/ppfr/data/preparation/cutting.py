"""From one photograph to its aligned faces: read, detect, choose, align, encode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from ppfr.data.detection.align import align, template
from ppfr.data.detection.detector import Detection, Detector
from ppfr.data.preparation.choosing import Choice, Chooser, Largest, Refusal
from ppfr.data.preparation.photographs import Photograph, Photographs
from ppfr.distributed.bulk import Operator, Rows
from ppfr.util.errors import DataError
from ppfr.util.opencv import one_thread_each, quiet

SMALLEST_FACE = 40.0
_QUALITY = 95
# names may be no UTF-8; float64 keeps detectors' numbers of any type as they are
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.binary()),
        ("detail", pa.binary()),
        ("jpeg", pa.binary()),
        ("identity", pa.binary()),
        ("score", pa.float64()),
        ("box", pa.list_(pa.float64())),
        ("landmarks", pa.list_(pa.float64())),
    ]
)


class Crop(NamedTuple):
    """An aligned face as JPEG, and which of the photograph's faces it is."""

    jpeg: bytes
    choice: Choice


class CutPhotograph(NamedTuple):
    """The crops of one photograph, and why it, or a face in it, gave none."""

    crops: Sequence[Crop]
    refused: Sequence[Refusal]


@dataclass(frozen=True)
class Cutter:
    """Cuts the faces that `choose` wants out of photographs, as crops of `size` 112 or 128.

    Faces whose box is narrower or lower than `smallest` pixels are refused. Raises DataError for another size.
    """

    choose: Chooser = field(default_factory=Largest)
    size: int = 112
    smallest: float = SMALLEST_FACE

    def __post_init__(self) -> None:
        template(self.size)

    def __call__(self, detector: Detector, photos: Photographs, photo: Photograph) -> CutPhotograph:
        """Read a photograph, find its faces and cut out those that are wanted."""
        try:
            image = photos.read(photo)
            faces = detector.detect(image)
        except DataError as error:
            return CutPhotograph([], [Refusal("unreadable", str(error))])
        except cv2.error as error:
            return CutPhotograph([], [Refusal("detector failed", str(error.err or error))])
        chosen, refused = self.choose(photo, faces, (image.shape[1], image.shape[0]))
        crops = []
        for choice in chosen:
            if choice.face.size < self.smallest:
                refused.append(Refusal("face too small", f"{choice.face.size:.0f} pixels"))
                continue
            crop = align(image, choice.face.landmarks, self.size)
            # colours of every pixel: methods that transform the chroma planes would see what four pixels share
            crops.append(Crop(simplejpeg.encode_jpeg(crop, _QUALITY, "RGB", "444"), choice))
        return CutPhotograph(crops, refused)


class CutFaces(Operator):
    """Cuts a batch of photographs by `workers` threads, each with a detector of its own from `open_detector`."""

    def __init__(self, photos: Photographs, cut: Cutter, open_detector: Callable[[], Detector], workers: int) -> None:
        self.photos = photos
        self.cut = cut
        self.open_detector = open_detector
        self.workers = workers

    def __getstate__(self) -> dict[str, Any]:
        # networks of OpenCV cannot be pickled: each process opens its own
        return {name: value for name, value in vars(self).items() if name != "detectors"}

    @cached_property
    def detectors(self) -> list[Detector]:
        """A detector for each thread."""
        with quiet():
            return [self.open_detector() for _ in range(self.workers)]

    def __call__(self, rows: Rows) -> pa.Table:
        """The crops and refusals of photographs, see `cut_photographs`."""
        free: SimpleQueue[Detector] = SimpleQueue()
        for detector in self.detectors:
            free.put(detector)

        def cut(photo: Photograph) -> CutPhotograph:
            detector = free.get()
            try:
                return self.cut(detector, self.photos, photo)
            finally:
                free.put(detector)

        with one_thread_each(), quiet(), ThreadPoolExecutor(self.workers) as pool:
            found = list(pool.map(cut, [self.photos.photos[row] for row in rows.tolist()]))
        return _table(rows, found)


def _table(rows: Rows, photographs: Sequence[CutPhotograph]) -> pa.Table:
    """A row for each crop and each refusal."""
    found: list[dict[str, Any]] = []
    for row, photograph in zip(rows.tolist(), photographs, strict=True):
        for jpeg, (face, identity) in photograph.crops:
            place = {"score": face.score, "box": face.box.tolist(), "landmarks": face.landmarks.ravel().tolist()}
            found.append({"row": row, "jpeg": jpeg, "identity": _encode(identity), **place})
        for reason, detail in photograph.refused:
            found.append({"row": row, "reason": _encode(reason), "detail": _encode(detail)})
    return pa.Table.from_pylist(found, _SCHEMA)


def cut_photographs(rows: Rows, table: pa.Table) -> list[CutPhotograph]:
    """What `CutFaces` returned for these rows, a photograph each."""
    crops: dict[int, list[Crop]] = {row: [] for row in rows.tolist()}
    refused: dict[int, list[Refusal]] = {row: [] for row in rows.tolist()}
    for found in table.to_pylist():
        if found["reason"] is not None:
            refused[found["row"]].append(Refusal(_decode(found["reason"]), _decode(found["detail"])))
        else:
            landmarks = np.array(found["landmarks"]).reshape(5, 2)
            face = Detection(np.array(found["box"]), found["score"], landmarks)
            crops[found["row"]].append(Crop(found["jpeg"], Choice(face, _decode(found["identity"]))))
    return [CutPhotograph(crops[row], refused[row]) for row in rows.tolist()]


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
