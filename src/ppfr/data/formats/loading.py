"""Labelled sets from encoded images: every image is decoded once, broken ones are left out and accounted for."""

from __future__ import annotations

import numpy as np

from ppfr.data.faceset import FaceSet, Indices, Skipped, pick
from ppfr.data.formats.listings import Listing
from ppfr.data.formats.records import FileRecords, Records, first_reasons
from ppfr.data.images import FACE_SIZE, Images, read_batch
from ppfr.util.errors import DataError
from ppfr.util.progress import track

CACHE_BYTES = 1 << 30
"""Decoded images of one set are kept in memory up to this size (1 GiB, 28,500 faces of 112 x 112)."""

_CHUNK = 4096  # bounds what is decoded but not yet stored


class _ImageReader:
    """Reads the images of a set, which are `rows` of its records (all if None), from `cache` if there is one."""

    def __init__(self, records: Records, rows: Indices | None, size: int, cache: Images | None) -> None:
        self.records = records
        self.rows = rows
        self.size = size
        self.cache = cache

    def __call__(self, indices: Indices) -> Images:
        if self.cache is not None:
            return self.cache[indices]
        rows = (indices if self.rows is None else self.rows[indices]).tolist()
        images, failures = read_batch(self.records.data, rows, self.size)
        for position, error in failures.items():
            raise DataError(f"{self.records.place(rows[position])}: {error}") from error
        return images


def load_listing(
    name: str, listing: Listing, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """The set that a listing names, as `load_records` makes it."""
    records = FileRecords(name, *listing)
    return load_records(records, size=size, strict=strict, cache_bytes=cache_bytes)


def load_records(
    records: Records, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Decode every image once, keep the good ones (in memory when they fit), account for the rest.

    Records whose index was made by decoding them are not decoded again, unless to keep them in memory. Raises
    DataError when no image is left, and with `strict` for anything skipped.
    """
    fits = len(records) * size * size * 3 <= cache_bytes
    cache, rows = None, None
    skipped = list(records.skipped)
    if fits or records.oblong is None:
        rows, cache, broken = _decode_all(records, size, keep=fits)
        skipped += broken
    elif len(records.oblong):
        rows = np.delete(np.arange(len(records)), records.oblong)
        skipped += [
            Skipped(records.place(row), "not square, so not an aligned crop") for row in records.oblong.tolist()
        ]
    if not (len(records) if rows is None else len(rows)):
        raise DataError(f"{records.name}: none of {len(records)} images can be used; {first_reasons(skipped)}")
    # of millions of images nothing is copied where all are good
    if rows is not None and len(rows) == len(records):
        rows = None
    labels = records.labels if rows is None else records.labels[rows]
    shown = np.bincount(labels, minlength=len(records.identities)) > 0
    for person in (~shown).nonzero()[0].tolist():
        skipped.append(Skipped(records.identities[person], "identity without a usable image"))
    if strict and skipped:
        raise DataError(f"{records.name}: {len(skipped)} refused under strict; {first_reasons(skipped)}")
    return FaceSet(
        records.name,
        [records.identities[person] for person in shown.nonzero()[0].tolist()],
        _ImageReader(records, rows, size, cache),
        names=records.names if rows is None else pick(records.names, rows),
        labels=labels if shown.all() else (np.cumsum(shown) - 1)[labels],
        size=size,
        skipped=skipped,
    )


def _decode_all(records: Records, size: int, *, keep: bool) -> tuple[Indices, Images | None, list[Skipped]]:
    """The rows that can be used, their images if wanted, and what cannot be used."""
    cache = np.empty((len(records), size, size, 3), np.uint8) if keep else None
    good: list[int] = []
    skipped: list[Skipped] = []
    for start in track(range(0, len(records), _CHUNK), f"{records.name}: reading"):
        rows = range(start, min(start + _CHUNK, len(records)))
        images, failures = read_batch(records.data, rows, size)
        usable = [position for position in range(len(rows)) if position not in failures]
        if cache is not None:
            cache[len(good) : len(good) + len(usable)] = images[usable]
        good += [rows[position] for position in usable]
        skipped += [Skipped(records.place(rows[position]), str(error)) for position, error in failures.items()]
    return np.array(good, np.int64), None if cache is None else cache[: len(good)], skipped
