"""Payload files of many photos, written by a method's client half; a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from ppfr.data.images import IMAGE_SUFFIXES, read_image, to_tensor
from ppfr.distributed.bulk import BulkJob, Operator, Rows
from ppfr.methods import Method
from ppfr.util.errors import DataError

_CHUNK = 16


class PhotoToProtect(NamedTuple):
    """A photo, its number among all (which fixes its random draws under a seed), and its payload file."""

    number: int
    photo: Path
    target: Path


class ProtectedPhoto(NamedTuple):
    """A photo and its payload file, with the bytes of the tensors and of a message."""

    photo: Path
    target: Path
    raw_bytes: int
    sent_bytes: int


class ProtectPhotos(Operator):
    """Writes a payload file for each photo; the random draws of each come from a stream of its own under a seed."""

    def __init__(self, method: Method, photos: Sequence[PhotoToProtect], seed: int | None) -> None:
        self.method = method
        self.photos = photos
        self.seed = seed

    def __call__(self, rows: Rows) -> pa.Table:
        """Columns row, raw_bytes and sent_bytes."""
        sizes = [self._protect(self.photos[row]) for row in rows.tolist()]
        raw, sent = zip(*sizes, strict=True)
        return pa.table({"row": rows, "raw_bytes": raw, "sent_bytes": sent})

    def _protect(self, one: PhotoToProtect) -> tuple[int, int]:
        # a stream for each photo: its draws do not depend on which others are there
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed * 1_000_003 + one.number)
        image = to_tensor(read_image(one.photo, self.method.input_size[0])[None])
        payload = self.method.protect(image, generator)
        payload.save(one.target)
        return payload.nbytes, payload.sent_nbytes


def photos_to_protect(sources: Sequence[Path], folder: Path) -> list[PhotoToProtect]:
    """The photos that are named, or lie in folders that are, with a payload file in `folder` for each.

    Raises DataError for a folder without images.
    """
    photos = [file for source in sources for file in _photo_files(source)]
    stems = [photo.stem for photo in photos]
    names = [f"{stem}-{number}" if stems.count(stem) > 1 else stem for number, stem in enumerate(stems)]
    targets = [folder / f"{name}.safetensors" for name in names]
    return [PhotoToProtect(*one) for one in zip(range(len(photos)), photos, targets, strict=True)]


def _photo_files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    found = sorted(file for file in source.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{source} holds no image; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def protect_photos(
    method: Method,
    photos: Sequence[PhotoToProtect],
    folder: Path,
    *,
    model: str,
    seed: int | None = None,
    chunk: int = _CHUNK,
) -> list[ProtectedPhoto]:
    """Write the payload files of all photos, in parts of `chunk` photos; a stopped call goes on with those missing.

    `model` identifies the weights and settings of the method. Without `seed` the client's random draws are fresh.
    Raises DataError for a photo that cannot be read, and when `folder` holds the beginning of other work.
    """
    job = BulkJob(folder / ".protecting", len(photos), chunk)
    names = "\n".join(f"{one.number} {one.photo.absolute()}" for one in photos)
    plan = {"model": model, "photos": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest(), "seed": seed}
    with job.begun(plan):
        job.apply(ProtectPhotos(method, photos, seed), f"{method.info.name}: protecting")
        return [
            ProtectedPhoto(
                photos[found["row"]].photo, photos[found["row"]].target, found["raw_bytes"], found["sent_bytes"]
            )
            for _, table in job.results()
            for found in table.to_pylist()
        ]
