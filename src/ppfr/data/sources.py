"""Labelled sets of aligned faces: folders, CSV, Parquet, TFRecord and RecordIO files, synthetic sets, protocols.

Every image is decoded once before a set is used, so that a broken one is known before training starts and not in the
middle of it: when the set is opened, and those of a Parquet file when it is written. The decoded images stay in memory
when they fit into `CACHE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppfr.data.faceset import FaceSet
from ppfr.data.formats.listings import given_splits, open_records
from ppfr.data.formats.loading import CACHE_BYTES, load_listing, load_records
from ppfr.data.images import FACE_SIZE, Source
from ppfr.data.protocols.heterogeneous import is_heterogeneous, list_entries, open_heterogeneous
from ppfr.data.synthetic.faces import is_synthetic, open_synthetic
from ppfr.util.errors import DataError

TEST_SHARE = 0.2


def open_faces(
    source: Source, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Open one set of aligned faces.

    `source` is

    - a folder with one folder per identity, or with groups of them: `GROUP/IDENTITY/IMAGE.jpg` has the identity
      `GROUP/IDENTITY`;
    - a CSV with the columns `path` (relative to the CSV) and `identity`;
    - `NAME.parquet`, as `ppfr convert` writes it (see `ppfr.data.formats.parquet`);
    - TFRecord: `NAME.txt` or `NAME.index` (see `ppfr.data.formats.record_sets.tfrecord`);
    - RecordIO: `NAME.rec`, or a folder with `train.rec` (see `ppfr.data.formats.record_sets.recordio`);
    - `"synthetic[:people=200,images=20,seed=0]"`;
    - the training list of a heterogeneous protocol, `"lamp-hq:DIR[,fold=N]"` (see `ppfr.data.protocols.heterogeneous`).

    Identities are sorted as strings and numbered from 0, those of record sets in the order of their labels. Images keep
    the order of CSV and records; folders are sorted. Images that are missing, broken or not square are left out and
    listed in `.skipped`, as are identity folders without images; files with other suffixes are ignored. Raises
    DataError when the source cannot be read, when no image is left, and with `strict` for anything skipped.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)[0]
    if is_heterogeneous(source):
        return _open_protocol(str(source), ("train",), size=size, strict=strict, cache_bytes=cache_bytes)[0]
    return load_records(open_records(source), size=size, strict=strict, cache_bytes=cache_bytes)


def open_splits(
    source: Source,
    *,
    size: int = FACE_SIZE,
    strict: bool = False,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[FaceSet, FaceSet]:
    """Open a training and a test set that share no person.

    `source` is a folder with `train.csv` and `test.csv`, or with `train/` and `test/` (a folder per identity
    in each); or anything `open_faces` takes, which is then split by people: a fifth of them, drawn with
    `seed`, is the test set. `"synthetic:..."` gives `people` people for training and a quarter as many others
    (at least 20) for testing. A heterogeneous protocol, `"lamp-hq:DIR[,fold=N]"`, gives the training list of a
    fold, its lowest unless named, and gallery and probes together. Raises DataError as `open_faces` does, when an
    identity is in both sets, and for fewer than 4 people to split.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)
    if is_heterogeneous(source):
        train, test = _open_protocol(str(source), ("train", "test"), size=size, strict=strict, cache_bytes=cache_bytes)
    else:
        path = Path(source).expanduser()
        parts = given_splits(path)
        if parts is None:
            return split_people(open_faces(path, size=size, strict=strict, cache_bytes=cache_bytes), seed=seed)
        train, test = (open_faces(part, size=size, strict=strict, cache_bytes=cache_bytes) for part in parts)
    if both := sorted(set(train.identities) & set(test.identities)):
        raise DataError(
            f"{source}: {len(both)} identities are in both train and test (first: {both[0]}); "
            "expected disjoint people, else the test measures memory. Rename or move them"
        )
    return train, test


def holds_splits(source: Source) -> bool:
    """Whether a source names its training and its test set itself."""
    return is_synthetic(source) or is_heterogeneous(source) or given_splits(Path(source).expanduser()) is not None


def _open_protocol(source: str, parts: Sequence[str], *, size: int, strict: bool, cache_bytes: int) -> list[FaceSet]:
    """The training images of a protocol's fold, and the gallery and probes of its test."""
    found = open_heterogeneous(source)
    lists = {
        "train": lambda: [found.read("train", found.first)],
        "test": lambda: [found.read("gallery", found.first), found.read("probe", found.first)],
    }
    return [
        load_listing(
            found.set_name(found.first, part),
            list_entries(found.root, lists[part]()),
            size=size,
            strict=strict,
            cache_bytes=cache_bytes,
        )
        for part in parts
    ]


def split_people(faces: FaceSet, *, share: float = TEST_SHARE, seed: int = 0) -> tuple[FaceSet, FaceSet]:
    """Split a set by people into (train, test).

    `share` of the people, at least 2, drawn with `seed`, are for testing; the draw depends on the sorted
    identities and the seed alone. Raises DataError for fewer than 4 people.
    """
    people = len(faces.identities)
    if people < 4:
        raise DataError(f"{faces.name}: {people} people; splitting into train and test needs at least 4")
    chosen = np.random.default_rng(seed).permutation(people)[: max(2, round(share * people))]
    is_test = np.isin(faces.labels, chosen)
    train = faces.subset(np.flatnonzero(~is_test), f"{faces.name} (train)")
    test = faces.subset(np.flatnonzero(is_test), f"{faces.name} (test)")
    train.skipped = list(faces.skipped)
    return train, test
