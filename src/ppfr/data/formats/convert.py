"""Training data from one format to another: the images' bytes, order, people and names stay as they are."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from ppfr.data.faceset import Skipped
from ppfr.data.formats.listings import open_records
from ppfr.data.formats.records import Records, first_reasons
from ppfr.data.formats.writers import FORMATS, NamedImage, SetDraft, Writer, format_suffix
from ppfr.data.images import IMAGE_SUFFIXES, Source, decode_image, in_threads
from ppfr.distributed.bulk import BulkJob, Operator, Rows
from ppfr.util.errors import DataError

_CHUNK = 1024
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
    """What a conversion did; `resumed_at` counts images done by earlier runs, `image_bytes` is of encoded images."""

    source: str
    target: str
    format: str
    images: int
    people: int
    image_bytes: int
    skipped: list[Skipped]
    resumed_at: int
    seconds: float


def convert(source: Source, target: Source, *, strict: bool = False, chunk: int = _CHUNK) -> Conversion:
    """Write the images of `source` in the format that the name of `target` stands for.

    No suffix: a folder per identity; `.parquet`: one packed file; `.txt`: TFRecord with TFace's indices. Encoded images
    are copied byte for byte. Every one is decoded on the way; one that cannot be is left out and listed in `skipped`,
    and with `strict` ends the conversion. The set gets its name when all is written. Until then it grows in a hidden
    folder beside `target`, where a stopped conversion goes on, `chunk` images at a time. Raises DataError when the
    target exists, cannot hold the people's names, or is being written by another process, and when no image is left.
    """
    began = time.monotonic()
    records, goal = open_records(source), Path(target).expanduser()
    kind = FORMATS[format_suffix(goal)]
    kind.check(records.identities)
    if strict and records.skipped:
        raise DataError(
            f"{records.name}: {len(records.skipped)} refused under strict; {first_reasons(records.skipped)}"
        )
    work = goal.parent / f".{goal.name}.converting"
    draft = SetDraft(work, goal, kind)
    job = BulkJob(work, len(records), chunk)
    with job.begun({"source": records.fingerprint()}):
        job.apply(CheckedImages(records, strict=strict), f"{goal.name}: reading")
        with nullcontext() if draft.written else draft.writer() as writer:
            broken, image_bytes = _write(records, job, writer, ImageNames(records, kind), strict=strict)
        draft.publish()
    good = np.delete(records.labels, list(broken))
    return Conversion(
        source=str(source),
        target=str(goal),
        format=kind.title,
        images=len(good),
        people=len(np.unique(good)),
        image_bytes=image_bytes,
        skipped=[*records.skipped, *broken.values()],
        resumed_at=job.done_before,
        seconds=time.monotonic() - began,
    )


class CheckedImages(Operator):
    """The encoded images of a set, each decoded to see that it can be, with the reason where it cannot."""

    def __init__(self, records: Records, *, strict: bool = False) -> None:
        self.records = records
        self.strict = strict

    def __call__(self, rows: Rows) -> pa.Table:
        """Columns image, square and reason; raises DataError for a broken image if `strict`."""
        found = in_threads(self._read, rows.tolist())
        broken = [(row, image) for row, image in zip(rows.tolist(), found, strict=True) if isinstance(image, DataError)]
        if self.strict and broken:
            raise DataError(f"{self.records.place(broken[0][0])}: {broken[0][1]}")
        images, squares = zip(*[(None, None) if isinstance(each, DataError) else each for each in found], strict=True)
        reasons = [str(each) if isinstance(each, DataError) else None for each in found]
        return pa.table(
            {
                "image": pa.array(images, pa.binary()),
                "square": pa.array(squares, pa.bool_()),
                "reason": pa.array(
                    [reason and reason.encode(errors="surrogateescape") for reason in reasons], pa.binary()
                ),
            }
        )

    def _read(self, row: int) -> tuple[bytes, bool]:
        image = self.records.data(row)
        if self.records.oblong is not None:
            # an opened set whose images were decoded
            return image, row not in self.records.oblong
        height, width = decode_image(image, None).shape[:2]
        return image, height == width


def _write(
    records: Records, job: BulkJob, writer: Writer | None, names: ImageNames, *, strict: bool
) -> tuple[dict[int, Skipped], int]:
    """Write all good images, if there is a writer; the broken ones by row, and the bytes of the good."""
    broken: dict[int, Skipped] = {}
    image_bytes = 0
    for rows, table in job.results():
        for row, found in zip(rows.tolist(), table.to_pylist(), strict=True):
            try:
                if found["reason"] is not None:
                    raise DataError(found["reason"].decode(errors="surrogateescape"))
                entry = _entry(records, names, row, found["image"], square=found["square"])
            except DataError as error:
                if strict:
                    raise DataError(f"{records.place(row)}: {error}") from error
                broken[row] = Skipped(records.place(row), str(error))
                continue
            image_bytes += len(entry.image)
            if writer is not None:
                writer.add(entry)
    if len(broken) == len(records):
        reasons = first_reasons(list(broken.values()))
        raise DataError(f"{records.name}: none of {len(records)} images can be used; {reasons}")
    return broken, image_bytes


def _entry(records: Records, names: ImageNames, row: int, image: bytes, *, square: bool) -> NamedImage:
    label = int(records.labels[row])
    name = names[row]
    if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
        name += _suffix(image)
    return NamedImage(name, records.identities[label], label, image, square)


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
