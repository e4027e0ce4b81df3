"""Verification sets as face.evoLVe and TFace keep them: an array on disk by bcolz, a package that is no longer kept.

    lfw/meta/sizes, lfw/meta/storage     JSON: shape (2 P, 3, H, W), float32, rows a chunk
    lfw/data/__0.blp, __1.blp ...        16 bytes of bloscpack header, then one Blosc chunk
    lfw_list.npy                         P truth values

Rows 2 i and 2 i + 1 are pair i. The values are (pixel / 255 - 0.5) / 0.5 with the planes blue, green, red: both
projects swap the planes before they embed. Blosc has no checksums: damage shows in values that are no
pixels, which finds nearly all of it, but not a flipped sign.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppfr.data.images import FACE_SIZE, Images, Source, fit_crop
from ppfr.data.pairs import PairedImages, PairSet
from ppfr.util.errors import DataError

_HEADER = struct.Struct("<4sB3xq4BIII")
"""Magic, format and number of chunks of bloscpack; version, its codec's, flags, type size, sizes of Blosc."""
_PACK = 16
_MOST_BYTES = 1 << 28
"""Of a decompressed chunk; bcolz makes chunks of some megabytes."""
# float32 holds pixels to 2e-5; a flipped bit can miss the next pixel by 4e-3
_TOLERANCE = 1e-3


def is_carray(path: Path) -> bool:
    """Whether a folder is an array of bcolz."""
    return (path / "meta" / "storage").is_file() and (path / "meta" / "sizes").is_file()


def load_carray(source: Source, *, size: int = FACE_SIZE) -> PairedImages:
    """Read the array in folder NAME and the truth values in NAME_list.npy, beside it or in it, as RGB uint8.

    Needs the package `blosc`. Raises DataError without it, for files that are missing, damaged or do not belong
    together, and for values that are not pixels scaled to [-1, 1].
    """
    folder = Path(source)
    shape, rows = _meta(folder)
    same = _truth(folder)
    if shape[0] != 2 * len(same):
        raise DataError(f"{folder}: {shape[0]} images for {len(same)} pairs; expected {2 * len(same)}")
    images = np.empty((shape[0], size, size, 3), np.uint8)
    for start in range(0, shape[0], rows):
        chunk = folder / "data" / f"__{start // rows}.blp"
        count = min(rows, shape[0] - start)
        values = _chunk(chunk, (count, *shape[1:]), (rows, *shape[1:]))
        for place, pixels in enumerate(_pixels(values, chunk), start):
            images[place] = fit_crop(pixels, size)
    first = np.arange(0, shape[0], 2)
    return PairedImages(PairSet(folder.name, first, first + 1, same), images)


def _meta(folder: Path) -> tuple[tuple[int, int, int, int], int]:
    """Shape of the array and rows a chunk."""
    sizes, storage = (_json(folder / "meta" / name) for name in ("sizes", "storage"))
    shape, rows, dtype = sizes.get("shape"), storage.get("chunklen"), storage.get("dtype")
    whole = isinstance(shape, list) and all(type(length) is int and 0 < length < 1 << 24 for length in shape)
    if not isinstance(shape, list) or not whole or len(shape) != 4 or shape[1] != 3:
        raise DataError(f"{folder}: shape {shape}; expected (2 P, 3, H, W)")
    if dtype not in ("float32", "<f4"):
        raise DataError(f"{folder}: holds {dtype}; expected float32")
    image_bytes = 12 * shape[2] * shape[3]
    if type(rows) is not int or not 0 < rows * image_bytes <= _MOST_BYTES:
        raise DataError(f"{folder}: {rows} rows a chunk; expected chunks of at most {_MOST_BYTES >> 20} MB")
    if sizes.get("nbytes") != shape[0] * image_bytes:
        raise DataError(f"{folder}: {sizes.get('nbytes')} bytes for shape {shape}; expected {shape[0] * image_bytes}")
    return (shape[0], shape[1], shape[2], shape[3]), rows


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as bcolz's JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def _truth(folder: Path) -> npt.NDArray[np.bool_]:
    name = f"{folder.name}_list.npy"
    path = next((path for path in (folder.parent / name, folder / name) if path.is_file()), folder.parent / name)
    try:
        # mapped: a header that claims more than there is then allocates nothing
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses a damaged header as Python, which can fail in any way
        raise DataError(f"{path}: cannot be read as an array of truth values ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "biu" or not values.size:
        raise DataError(f"{path}: expected truth values (P,)")
    # also of booleans: a damaged byte may be neither
    plain = values.view(np.uint8) if values.dtype == np.bool_ else values
    if not np.isin(plain, (0, 1)).all():
        raise DataError(f"{path}: holds other values than true and false")
    return np.asarray(plain == 1)


def _chunk(path: Path, shape: tuple[int, ...], full: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The rows of a chunk; the last one of an array may be stored in full, with rows beyond the end."""
    try:
        import blosc
    except ImportError as error:
        raise DataError(f"{path}: arrays of bcolz need the package blosc; pip install 'ppfr[bcolz]'") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) < _HEADER.size:
        raise DataError(f"{path}: cut short, {len(data)} bytes")
    magic, layout, chunks, version, _, _, width, size, block, packed = _HEADER.unpack_from(data)
    sizes = [4 * int(np.prod(each)) for each in (shape, full)]
    if magic != b"blpk" or layout != 1 or chunks != 1 or version != 2 or width != 4:
        raise DataError(f"{path}: not one chunk of float32 by bcolz, or damaged")
    if size not in sizes or packed != len(data) - _PACK or not 0 < block <= max(size, 1 << 12):
        raise DataError(
            f"{path}: damaged: {size} bytes packed into {packed}; expected {sizes[0]} packed into {len(data) - _PACK}"
        )
    try:
        plain = blosc.decompress(data[_PACK:])
    except (blosc.blosc_extension.error, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if len(plain) != size:
        raise DataError(f"{path}: damaged: {len(plain)} bytes; expected {size}")
    return np.frombuffer(plain, "<f4", int(np.prod(shape))).reshape(shape)


def _pixels(values: npt.NDArray[np.float32], path: Path) -> Images:
    """Values (n, 3, H, W) of blue, green and red as RGB uint8 (n, H, W, 3)."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values * np.float32(127.5) + np.float32(127.5)
        pixels = np.rint(scaled)
        wrong = ~((np.abs(scaled - pixels) < _TOLERANCE) & (pixels >= 0) & (pixels <= 255))
    if wrong.any():
        example = float(values[wrong][0])
        raise DataError(
            f"{path}: holds {example:.6g}, no pixel as (v / 255 - 0.5) / 0.5; damaged, or scaled in another way"
        )
    return np.ascontiguousarray(pixels[:, ::-1].transpose(0, 2, 3, 1), np.uint8)
