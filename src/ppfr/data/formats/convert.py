"""Training data from one format to another: the images' bytes, order, people and names stay as they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock, Timeout

from ppfr.data.faceset import Skipped
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.records import Records, first_reasons
from ppfr.data.formats.writers import CsvWriter, Entry, FolderWriter, RecordIOWriter, TFRecordWriter, Writer
from ppfr.data.images import IMAGE_SUFFIXES, Source, decode_image, in_threads
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write
from ppfr.util.progress import progress_callback

FORMATS: dict[str, tuple[str, type[Writer]]] = {
    "": ("folder", FolderWriter),
    ".csv": ("CSV", CsvWriter),
    ".txt": ("TFRecord", TFRecordWriter),
    ".rec": ("RecordIO", RecordIOWriter),
}
"""Name and writer of a format by the suffix of the target."""

CHECKPOINT_ROWS = 4096
_REFUSED = {".index": ".txt", ".tfrecord": ".txt", ".idx": ".rec", ".bin": ".rec"}
_SIGNATURES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass
class Conversion:
    """What a conversion did; `resumed_at` is the row at which it went on, `image_bytes` counts encoded images."""

    source: str
    target: str
    format: str
    images: int
    people: int
    image_bytes: int
    skipped: list[Skipped]
    resumed_at: int
    seconds: float


@dataclass
class _State:
    """How far a conversion got, as it is kept beside the unfinished files."""

    source: str
    rows: int = 0
    image_bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    whole: bool = False


def convert(source: Source, target: Source, *, strict: bool = False, checkpoint: int = CHECKPOINT_ROWS) -> Conversion:
    """Write the images of `source` as the format that the name of `target` says.

    No suffix: a folder per identity; `.csv`: a list and its images; `.txt`: TFRecord with TFace's indices; `.rec`:
    RecordIO as InsightFace has it. Encoded images are copied byte for byte. Every one is decoded on the way; one that
    cannot be is left out and told, and with `strict` ends the conversion. Files get their names when all is written.
    Until then they grow in a hidden folder beside `target`, from where a stopped conversion goes on: every `checkpoint`
    rows its state is put on disk. Raises DataError when the target exists, cannot hold the people's names, or is being
    written by another process, and when no image is left.
    """
    began = time.monotonic()
    records, goal = open_records(source), Path(target).expanduser()
    title, kind = _target_format(goal)
    kind.check(records.identities)
    if strict and records.skipped:
        raise DataError(
            f"{records.name}: {len(records.skipped)} refused under strict; {first_reasons(records.skipped)}"
        )
    work = goal.parent / f".{goal.name}.converting"
    state = _load_state(work / "state.json", records) or _State(records.fingerprint())
    there = [name for name in kind.outputs(goal) if (goal.parent / name).exists()]
    if there and not state.whole:
        raise DataError(f"{goal.parent / there[0]}: exists already; remove it or choose another name")
    resumed = state.rows
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            if not state.whole:
                _write_all(records, kind, work, goal, state, strict=strict, checkpoint=checkpoint)
            for name in kind.outputs(goal):
                if (work / name).exists():
                    os.replace(work / name, goal.parent / name)
    except Timeout as error:
        raise DataError(f"{goal}: another process is writing it") from error
    shutil.rmtree(work)
    good = np.delete(records.labels, [row for row, _, _ in state.broken])
    return Conversion(
        source=str(source),
        target=str(goal),
        format=title,
        images=len(good),
        people=len(np.unique(good)),
        image_bytes=state.image_bytes,
        skipped=[*records.skipped, *(Skipped(place, reason) for _, place, reason in state.broken)],
        resumed_at=resumed,
        seconds=time.monotonic() - began,
    )


def _target_format(target: Path) -> tuple[str, type[Writer]]:
    suffix = target.suffix.lower()
    if suffix in _REFUSED:
        raise DataError(
            f"{target}: expected the name of a set: {target.with_suffix(_REFUSED[suffix])}, a .csv file, or a folder"
        )
    return FORMATS.get(suffix, FORMATS[""])


def _load_state(path: Path, records: Records) -> _State | None:
    try:
        state = _State(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove {path.parent} to begin anew") from error
    if state.source != records.fingerprint():
        raise DataError(
            f"{path.parent}: the beginning of another conversion, or {records.name} has changed since; remove it to "
            "begin anew"
        )
    return state


def _write_all(
    records: Records, kind: type[Writer], work: Path, target: Path, state: _State, *, strict: bool, checkpoint: int
) -> None:
    """Write the rows from `state.rows` on, and what follows the last."""
    names = ImageNames(records, kind)
    writer = kind(work, target, state.sizes)
    try:
        writer.plan(records.labels)
        with progress_callback(f"{target.name}: writing") as progress:
            for start in range(state.rows, len(records), checkpoint):
                rows = range(start, min(start + checkpoint, len(records)))
                for row, image in _images(records, rows):
                    try:
                        if isinstance(image, DataError):
                            raise image
                        writer.add(_entry(records, names, row, image))
                        state.image_bytes += len(image)
                    except DataError as error:
                        if strict:
                            raise DataError(f"{records.place(row)}: {error}") from error
                        state.broken.append((row, records.place(row), str(error)))
                state.rows, state.sizes = rows.stop, writer.sizes()
                _save_state(work, state)
                progress(state.rows, len(records))
        broken = [row for row, _, _ in state.broken]
        if len(broken) == len(records):
            reasons = first_reasons([Skipped(place, reason) for _, place, reason in state.broken])
            raise DataError(f"{records.name}: none of {len(records)} images can be used; {reasons}")
        writer.finish(np.delete(records.labels, broken))
        writer.sizes()
    finally:
        writer.close()
    state.whole = True
    _save_state(work, state)


def _save_state(work: Path, state: _State) -> None:
    atomic_write(work / "state.json", json.dumps(asdict(state)))


def _images(records: Records, rows: range, block: int = 256) -> Iterator[tuple[int, bytes | DataError]]:
    """The encoded images of rows, read and tried by several threads, a block in memory at a time."""

    def attempt(row: int) -> bytes:
        image = records.data(row)
        # an index was made by decoding
        if records.oblong is None:
            decode_image(image, None)
        return image

    for start in range(rows.start, rows.stop, block):
        part = range(start, min(start + block, rows.stop))
        yield from zip(part, in_threads(attempt, part), strict=True)


def _entry(records: Records, names: ImageNames, row: int, image: bytes) -> Entry:
    label = int(records.labels[row])
    name = names[row]
    if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
        name += _suffix(image)
    return Entry(name, records.identities[label], label, image)


def _suffix(image: bytes) -> str:
    for signature, suffix in _SIGNATURES.items():
        if image.startswith(signature):
            return suffix
    raise DataError(f"an image without a usual suffix; expected one of {', '.join(sorted(IMAGE_SUFFIXES))}")


class ImageNames:
    """`IDENTITY/FILE` for every row, no two alike.

    FILE is the image's own name; where it has none, or one that the format `kind` cannot hold, it is the row's number,
    and where an earlier image of the person has the same, the number is added.
    """

    def __init__(self, records: Records, kind: type[Writer]) -> None:
        self._records = records
        self._kind = kind
        self._renamed: dict[int, str] = {}
        # millions of names as hashes, of which equal ones are looked at
        hashes = np.fromiter((_hash(self._own(row)) for row in range(len(records))), np.uint64, len(records))
        _, first = np.unique(hashes, return_index=True)
        taken = set(hashes.tolist()) if len(first) < len(hashes) else set()
        for row in np.setdiff1d(np.arange(len(hashes)), first).tolist():
            own = PurePosixPath(self._own(row))
            name = f"{own.stem}-{row}"
            while _hash(str(own.with_name(name + own.suffix))) in taken:
                name += "-"
            self._renamed[row] = str(own.with_name(name + own.suffix))
            taken.add(_hash(self._renamed[row]))

    def __getitem__(self, row: int) -> str:
        return self._renamed.get(row) or self._own(row)

    def _own(self, row: int) -> str:
        identity = self._records.identities[self._records.labels[row]]
        file = PurePosixPath(self._records.names[row]).name if self._records.named else ""
        if not self._kind.can_name(file):
            file = ""
        if file and PurePosixPath(file).suffix.lower() not in IMAGE_SUFFIXES:
            file += f"-{row}"
        return f"{identity}/{file or f'{row:08d}'}"


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest(), "little")
