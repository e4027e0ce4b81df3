"""The compiled index of a record set: arrays in one file that opens at once, whatever the number of rows.

`NAME.ppfr-index` beside the set is a safetensors file, mapped into memory, so that all processes of a machine share it.
It is made once, with every record read and checked, and holds the good ones. It is made anew when a file of the set has
another size or time than when it was made, and when its own checksums tell damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from ppfr.data.faceset import Indices, Skipped
from ppfr.data.formats.recordfiles import Texts
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_path

SUFFIX = ".ppfr-index"
_VERSION = "1"
_NUMPY = {"I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "|u1"}
_COLUMNS = {"shards": np.int32, "offsets": np.int64, "sizes": np.uint32, "labels": np.int64, "checks": np.uint32}
_PIECE = 1 << 20


Stamps = dict[str, tuple[int, int]]


def stamps(folder: Path, files: Sequence[Path]) -> Stamps:
    """Size and time of change (ns) of files by their path from `folder`; -1 for one that is not there."""
    return {os.path.relpath(file, folder): _stamp(file) for file in files}


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@dataclass
class RowIndex:
    """The good records of a set, one row each.

    `shards` (N,) int32 index `files`, `offsets` (N,) int64 and `sizes` (N,) uint32 are of the whole records,
    `labels` (N,) int64 index `identities`, `checks` (N,) uint32 are the CRC-32C of the images. `names` are the images'
    names or None, `oblong` (M,) int64 the rows whose images are not square, `skipped` what cannot be used and why.
    `stamped` is what the files of the set were like.
    """

    files: list[Path]
    shards: npt.NDArray[np.int32]
    offsets: Indices
    sizes: npt.NDArray[np.uint32]
    labels: Indices
    checks: npt.NDArray[np.uint32]
    identities: list[str]
    names: Texts | None
    oblong: Indices
    skipped: list[Skipped]
    stamped: Stamps


def index_path(path: Path) -> Path:
    """Where the index of a set is kept: beside it, or in the user's cache where that cannot be written."""
    beside = path.with_name(path.name + SUFFIX)
    if os.access(path.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ppfr" / "index"
    whole = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return cache / f"{path.stem}-{whole}{SUFFIX}"


def save_index(path: Path, index: RowIndex, folder: Path) -> None:
    """Write the index of a set in `folder` atomically."""
    tensors: dict[str, npt.NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(index, name), kind) for name, kind in _COLUMNS.items()
    }
    about = {
        "stamped": index.stamped,
        "files": list(stamps(folder, index.files)),
        "skipped": index.skipped,
        "named": index.names is not None,
    }
    identities = Texts.of(index.identities)
    names = index.names or Texts.of(())
    tensors |= {
        "oblong": np.ascontiguousarray(index.oblong, np.int64),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "identities": identities.blob,
        "identity_ends": identities.ends,
        "names": names.blob,
        "name_ends": names.ends,
    }
    sums = {name: _checksum(array.view(np.uint8)) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"ppfr-index": _VERSION, "crc32c": json.dumps(sums)})


def load_index(path: Path, folder: Path) -> RowIndex | None:
    """Map the index of a set in `folder` into memory; None where it is missing, damaged, or older than the set."""
    try:
        arrays = _map_arrays(path)
        about = json.loads(arrays["about"].tobytes())
        stamped = {name: tuple(stamp) for name, stamp in about["stamped"].items()}
        if stamped != stamps(folder, [folder / name for name in stamped]):
            return None
        return RowIndex(
            files=[folder / name for name in about["files"]],
            **{name: arrays[name].astype(kind, copy=False) for name, kind in _COLUMNS.items()},
            identities=list(Texts(arrays["identities"], arrays["identity_ends"])),
            names=Texts(arrays["names"], arrays["name_ends"]) if about["named"] else None,
            oblong=arrays["oblong"],
            skipped=[Skipped(*skipped) for skipped in about["skipped"]],
            stamped=stamped,
        )
    # whatever is wrong with a file that can be made again, it is made again
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def _map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped, after their checksums were compared with those in its header."""
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > os.fstat(stream.fileno()).st_size:
            raise DataError(f"{path}: damaged header")
        header = json.loads(stream.read(length))
        about = header.pop("__metadata__")
        sums = json.loads(about["crc32c"])
        if about["ppfr-index"] != _VERSION:
            raise DataError(f"{path}: an index of another version")
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            kind = np.dtype(_NUMPY[entry["dtype"]])
            rows = (end - start) // kind.itemsize
            # reading, unlike touching mapped pages, leaves nothing in this process's memory
            if entry["shape"] != [rows] or _checksum_piecewise(stream, start, end) != sums[name]:
                raise DataError(f"{path}: {name} is damaged")
            # an empty array cannot be mapped
            mapped = np.memmap(path, kind, "r", start, (rows,)) if rows else np.empty(0, kind)
            arrays[name] = np.asarray(mapped)
    return arrays


def _checksum(data: npt.NDArray[np.uint8]) -> int:
    crc = 0
    for start in range(0, len(data), _PIECE):
        crc = google_crc32c.extend(crc, data[start : start + _PIECE].tobytes())
    return int(crc)


def _checksum_piecewise(stream: Any, start: int, end: int) -> int:
    stream.seek(start)
    crc = 0
    while start < end and (piece := stream.read(min(_PIECE, end - start))):
        crc = google_crc32c.extend(crc, piece)
        start += len(piece)
    if start < end:
        raise DataError("cut short")
    return int(crc)
