"""The index files of record sets: TFace's two layouts, and InsightFace's `.idx`."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from ppfr.data.faceset import Indices
from ppfr.data.formats.record_sets import recordio, tfrecord
from ppfr.data.formats.record_sets.files import Codec, DataFiles, Listed, integers, read_lines, whole_number
from ppfr.util.errors import DataError

TFRECORD = Codec(tfrecord.record_size, tfrecord.unpack_record)
RECORDIO = Codec(recordio.record_size, recordio.unpack_image)


def list_training_index(path: Path) -> Listed:
    """TFace's training index, `SET  SHARD  OFFSET  LABEL` a line; records in `SET/SET-00000.tfrecord` beside it."""
    shards, offsets, labels = array("q"), array("q"), array("q")
    files: dict[tuple[str, int], int] = {}
    broken: dict[int, str] = {}
    for number, fields in read_lines(path):
        try:
            if len(fields) != 4:
                raise DataError(f"{len(fields)} fields; expected record set, shard, offset and label between tabs")
            name, shard, offset, label = fields[0], *map(whole_number, fields[1:])
            if PurePosixPath(name).name != name:
                raise DataError(f"record set {name!r} is no name of a folder")
        except DataError as error:
            broken[len(offsets)] = f"{path}, line {number}: {error}"
            shard, offset, label = -1, -1, -1
        shards.append(files.setdefault((name, shard), len(files)) if shard >= 0 else -1)
        offsets.append(offset)
        labels.append(label)
    _refuse_hopeless(path, len(offsets), broken, "lines of record set, shard, offset, label")
    found = [path.parent / name / shard_name(name, shard) for name, shard in files]
    return Listed(found, [path], TFRECORD, integers(shards), integers(offsets), integers(labels), broken=broken)


def list_image_index(path: Path) -> Listed:
    """TFace's index of a record set, `IMAGE  SHARD  OFFSET` a line; the image's folder is its identity."""
    shards, offsets, people = array("q"), array("q"), array("q")
    numbers: dict[str, int] = {}
    files: dict[int, int] = {}
    names: list[str] = []
    broken: dict[int, str] = {}
    for number, fields in read_lines(path):
        name, identity = fields[0], str(PurePosixPath(fields[0]).parent)
        try:
            if len(fields) != 3:
                raise DataError(f"{len(fields)} fields; expected image path, shard and offset between tabs")
            shard, offset = map(whole_number, fields[1:])
            if identity in {".", "/"}:
                raise DataError(f"image {name!r} is in no folder, so of no identity; open the training index, .txt")
        except DataError as error:
            broken[len(offsets)] = f"{path}, line {number}: {error}"
            shard, offset = -1, -1
        shards.append(files.setdefault(shard, len(files)) if shard >= 0 else -1)
        offsets.append(offset)
        people.append(numbers.setdefault(identity, len(numbers)) if shard >= 0 else -1)
        names.append(name)
    _refuse_hopeless(path, len(offsets), broken, "lines of image path, shard, offset")
    identities = sorted(numbers)
    place = np.empty(len(numbers) + 1, np.int64)
    place[[numbers[identity] for identity in identities]] = np.arange(len(identities))
    place[-1] = -1
    found = [path.parent / shard_name(path.stem, shard) for shard in files]
    labels = place[integers(people)]
    return Listed(
        found,
        [path],
        TFRECORD,
        integers(shards),
        integers(offsets),
        labels,
        names=names,
        identities=identities,
        broken=broken,
    )


def shard_name(name: str, shard: int) -> str:
    return f"{name}-{shard:05d}.tfrecord"


def list_recordio(path: Path) -> Listed:
    """InsightFace's `NAME.rec` by its `NAME.idx`, `KEY  OFFSET` a line; raises DataError where they do not fit."""
    index = path.with_suffix(".idx")
    offsets_of: dict[int, int] = {}
    for number, fields in read_lines(index):
        try:
            key, offset = map(whole_number, fields)
        except (DataError, ValueError) as error:
            raise DataError(f"{index}, line {number}: {error}; expected key and offset between a tab") from error
        if key in offsets_of:
            raise DataError(f"{index}, line {number}: key {key} is there twice")
        offsets_of[key] = offset
    _refuse_hopeless(index, len(offsets_of), {}, "lines of key, offset")
    keys = np.fromiter(offsets_of, np.int64, len(offsets_of))
    offsets = np.fromiter(offsets_of.values(), np.int64, len(offsets_of))
    order = np.argsort(keys)
    keys, offsets = keys[order], offsets[order]
    images = _images_of_header(path, keys, offsets)
    if images is not None:
        offsets = offsets[1 : images + 1]
    return Listed([path], [index], RECORDIO, np.zeros(len(offsets), np.int64), offsets)


def _images_of_header(path: Path, keys: Indices, offsets: Indices) -> int | None:
    """The number of images according to the header record; None when the set begins with an image."""
    try:
        content = _content(DataFiles([path]).reader(0), int(offsets[0]))
        if not content.flag or content.image:
            return None
        if len(content.labels) != 2:
            raise DataError(f"the header record holds {len(content.labels)} numbers; expected 2")
        first_identity, end = recordio.whole(content.labels)
    except DataError as error:
        raise DataError(f"{path}, byte {offsets[0]}: {error}") from error
    if not 1 < first_identity <= end or end != len(keys) or keys[0] != 0 or keys[-1] != end - 1:
        raise DataError(
            f"{path}: the header record promises images 1..{first_identity - 1} and identities {first_identity}.."
            f"{end - 1}, but {path.with_suffix('.idx').name} has {len(keys)} keys, {keys[0]}..{keys[-1]}"
        )
    return first_identity - 1


def _content(read: Callable[[int, int], bytes], offset: int) -> recordio.Content:
    return recordio.unpack_content(read(offset, recordio.record_size(read, offset)))


def _refuse_hopeless(path: Path, rows: int, broken: dict[int, str], expected: str) -> None:
    if len(broken) == rows:
        first = f"; {next(iter(broken.values()))}" if broken else ""
        raise DataError(f"{path}: names no record; expected {expected}{first}")
