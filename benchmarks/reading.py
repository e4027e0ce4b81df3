"""JPEG crops into training batches, from every format, against a straightforward reader; and how a large set opens.

Both are timed in turn, in one process on one core, in seconds of that core (the process's own time, which other
programs cannot lengthen much); then threads against processes on all cores, by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import cv2
import numpy as np

from ppfr.data.batches import Batches
from ppfr.data.faceset import FaceSet
from ppfr.data.formats.convert import convert
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.parquet import ParquetFile
from ppfr.data.images import usable_cores
from ppfr.data.sources import open_faces

BATCH = 256
SIZE = 112


class PlainReader:
    """One image after the other with OpenCV, and a stack: a plain Dataset."""

    def __init__(self, path: Path) -> None:
        self.records = open_records(path)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.image(row) for row in indices.tolist()])

    def image(self, row: int) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(self.records.data(row), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def make_crops(folder: Path, people: int = 50, images: int = 30) -> Path:
    """Synthetic faces as JPEG, quality 95: about the size of real crops."""
    faces = open_faces(f"synthetic:people={people},images={images}")
    for name, image in zip(faces.names, faces.images(), strict=True):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def shuffled_batches(count: int, seed: int = 0) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return [order[start : start + BATCH] for start in range(0, count - count % BATCH, BATCH)]


def rate(read: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray], clock: Callable[[], float]) -> float:
    began = clock()
    for batch in batches:
        read(batch)
    return sum(map(len, batches)) / (clock() - began)


def compare_formats(sets: dict[str, Path], repeats: int) -> None:
    """On one core: plain and ours in turn, medians."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    print(f"{'one core':<10}{'plain':>10}{'ppfr':>10}{'ratio':>8}   crops into a batch, each second of a core")
    for title, path in sets.items():
        plain, faces = PlainReader(path), open_faces(path, cache_bytes=0)
        batches = shuffled_batches(len(faces))
        np.testing.assert_array_equal(plain(batches[0]), faces.images(batches[0]))
        rates = np.array(
            [[rate(read, batches, time.process_time) for read in (plain, faces.images)] for _ in range(repeats)]
        )
        slow, fast = np.median(rates, axis=0)
        print(f"{title:<10}{slow:>10,.0f}{fast:>10,.0f}{fast / slow:>8.2f}")
    os.sched_setaffinity(0, cores)


# --- threads against processes --------------------------------------------------------------------------------------
_worker: dict[str, FaceSet] = {}


def start_worker(path: Path) -> None:
    cv2.setNumThreads(1)
    _worker["faces"] = open_faces(path, cache_bytes=0)


def read_into_shared(task: tuple[str, int, list[int]]) -> None:
    name, start, rows = task
    memory = SharedMemory(name)
    batch = np.ndarray((BATCH, SIZE, SIZE, 3), np.uint8, memory.buf)
    batch[start : start + len(rows)] = _worker["faces"].images(rows)
    del batch
    memory.close()


def compare_workers(path: Path, repeats: int) -> None:
    """All cores: `FaceSet.images` with its threads, and processes that fill a batch in shared memory."""
    cores = usable_cores()
    faces = open_faces(path, cache_bytes=0)
    batches = shuffled_batches(len(faces))
    memory = SharedMemory(create=True, size=BATCH * SIZE * SIZE * 3)
    with get_context("spawn").Pool(cores, start_worker, (path,)) as pool:

        def by_processes(rows: np.ndarray) -> np.ndarray:
            step = -(-len(rows) // cores)
            tasks = [(memory.name, start, rows[start : start + step].tolist()) for start in range(0, len(rows), step)]
            pool.map(read_into_shared, tasks, chunksize=1)
            return np.ndarray((BATCH, SIZE, SIZE, 3), np.uint8, memory.buf)

        np.testing.assert_array_equal(by_processes(batches[0]), faces.images(batches[0]))
        rates = [
            [rate(read, batches, time.perf_counter) for read in (faces.images, by_processes)] for _ in range(repeats)
        ]
    memory.close()
    memory.unlink()
    threads, processes = np.median(rates, axis=0)
    print(f"\n{cores} cores, {path.suffix}: threads {threads:,.0f} a second, processes {processes:,.0f}")


# --- a large set -----------------------------------------------------------------------------------------------------


def write_large_set(folder: Path, rows: int) -> Path:
    """A Parquet file of so many rows with the names and people of faces, and a few bytes for each image."""
    path = folder / "large.parquet"
    file = ParquetFile(path)
    for row in range(rows):
        file.add(f"{row // 20:07d}/{row:08d}.jpg", f"{row // 20:07d}", b"no image", square=True)
    file.close()
    return path


def memory() -> dict[str, int]:
    """kB of this process: the most resident so far (`ru_maxrss` would begin with the parent's), and private ones now.

    Private are those that no file holds; the system can take back a file's pages whenever it needs them.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kept = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return {"resident": kept["VmHWM"], "private": kept["RssAnon"]}


def open_large(path: Path) -> None:
    """In a process of its own: core seconds and memory of opening a set and beginning an epoch."""
    figures: dict[str, float] = {f"{kind} before": value for kind, value in memory().items()}
    began = time.process_time()
    faces = open_faces(path)
    figures["opened"] = time.process_time() - began
    figures |= {f"{kind} opened": value for kind, value in memory().items()}
    began = time.process_time()
    batches = Batches(faces, 512, seed=0, epoch=0)
    figures["epoch"] = time.process_time() - began
    figures |= {f"{kind} in epoch": value for kind, value in memory().items()}
    assert len(batches)
    print(json.dumps(figures))


def measure_large(folder: Path, rows: int, repeats: int) -> None:
    path = write_large_set(folder, rows)
    runs = []
    for _ in range(repeats):
        child = subprocess.run([sys.executable, __file__, "--open", path], capture_output=True, text=True, check=True)
        runs.append(json.loads(child.stdout))
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(
        f"\na set of {rows:,} rows opens in {found['opened']:.2f} s of a core, "
        f"an epoch's order takes {found['epoch']:.2f} s\n{'MB of the process':<20}{'before':>8}{'open':>8}{'epoch':>8}"
    )
    for kind, title in (("resident", "resident at most"), ("private", "private")):
        values = [found[f"{kind} {moment}"] / 1024 for moment in ("before", "opened", "in epoch")]
        print(f"{title:<20}" + "".join(f"{value:>8.0f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="Real crops, in any format; synthetic ones without.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="Rows of the large set.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_large(options.open)
        return
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(options.data or make_crops(folder / "crops"), folder / "faces")
        sets = {"folder": folder / "faces"}
        for title, suffix in (("TFRecord", ".txt"), ("Parquet", ".parquet")):
            sets[title] = folder / title / f"faces{suffix}"
            done = convert(folder / "faces", sets[title])
        print(f"{done.images:,} crops of {done.image_bytes / done.images:,.0f} bytes\n")
        compare_formats(sets, options.repeats)
        compare_workers(sets["Parquet"], options.repeats)
        measure_large(folder, options.rows, options.repeats)


if __name__ == "__main__":
    main()
