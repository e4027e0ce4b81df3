"""Photographs to aligned faces: photographs a second, and what each step of one costs, by each detector.

Needs photographs of people and the detectors' weights, so it is given a folder of them. Seconds are those of the
process's own clock, over all its threads: other programs cannot lengthen them much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2

from ppfr.data.detection.align import align
from ppfr.data.detection.detectors import open_detector
from ppfr.data.preparation.photographs import open_photographs
from ppfr.data.preparation.prepare import prepare
from ppfr.util.opencv import one_thread_each, quiet

Result = TypeVar("Result")
LONGEST = 700


def enlarged(source: Path, folder: Path, repeats: int) -> Path:
    """The photographs with their longest side at 700 pixels, several times."""
    photos = open_photographs(source)
    folder.mkdir()
    for number, photo in enumerate(photos.photos):
        image = photos.read(photo)[:, :, ::-1]
        scale = LONGEST / max(image.shape[:2])
        data = cv2.imencode(".jpg", cv2.resize(image, None, fx=scale, fy=scale))[1].tobytes()
        for repeat in range(repeats):
            (folder / f"{repeat}-{number:05d}.jpg").write_bytes(data)
    return folder


def timed(task: Callable[[], Result]) -> tuple[Result, float]:
    began = time.process_time()
    return task(), time.process_time() - began


def steps(source: Path, name: str, model: Path | None) -> dict[str, float]:
    """Median milliseconds of each step for one photograph, on one thread."""
    photos, detector = open_photographs(source), open_detector(name, model)
    rows = []
    for photo in photos.photos:
        image, read = timed(partial(photos.read, photo))
        faces, detect = timed(partial(detector.detect, image))
        cut = [timed(partial(align, image, face.landmarks))[1] for face in faces[:1]]
        rows.append((read, detect, sum(cut)))
    return {
        step: 1e3 * statistics.median(column)
        for step, column in zip(("read", "detect", "align"), zip(*rows, strict=True), strict=True)
    }


def whole(source: Path, target: Path, name: str, model: Path | None, workers: int) -> dict[str, float]:
    """Photographs a second of all of `prepare`, by the clock and by the seconds of a core."""
    began = time.process_time()
    done = prepare(source, target, partial(open_detector, name, model), workers=workers)
    core = time.process_time() - began
    return {"by the clock": done.photographs / done.seconds, "a second of a core": done.photographs / core}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--yunet", type=Path, help="weights; fetched without")
    parser.add_argument("--retinaface", type=Path, help="weights; not measured without")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    detectors = {"yunet": options.yunet, "retinaface": options.retinaface}
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = enlarged(options.photographs, Path(folder) / "photographs", options.repeats)
        for name, model in detectors.items():
            if name == "retinaface" and model is None:
                continue
            with one_thread_each(), quiet():
                figures[f"{name}, ms"] = steps(source, name, model)
            for workers in options.workers:
                target = Path(folder) / f"{name}-{workers}.csv"
                figures[f"{name}, {workers} workers"] = whole(source, target, name, model, workers)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
