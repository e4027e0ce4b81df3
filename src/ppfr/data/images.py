"""Decoding images into RGB uint8, with a reason for each that cannot be used."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from ppfr.util.errors import DataError

Images = npt.NDArray[np.uint8]
Source = str | os.PathLike[str]
Result = TypeVar("Result")

FACE_SIZE = 112
# a sensor of 12 bits in a 16-bit file spans 16 of 256 steps
_FEWEST_LEVELS = 32
# the largest image that OpenCV decodes takes 3 GB; a damaged header must not ask for as much
_MOST_PIXELS = 1 << 27
_ITEMS_A_TASK = 16
# tag and type of the orientation in EXIF 2.3
_ORIENTATION = 0x0112
_SHORT = 3
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def decode_image(data: bytes, size: int | None = FACE_SIZE) -> Images:
    """Decode an encoded image into (size, size, 3) RGB uint8; with `size=None` into its own height and width.

    Grey, palette, alpha, 16-bit and CMYK images become 8-bit RGB (alpha is dropped, 16 bits lose the lower
    8), and photographs are turned as their EXIF orientation asks. A square image of another size is resized
    (area averaging down, bilinear up). Raises DataError when
    the data is not an image, is cut short (OpenCV would fill the missing part with grey), is a JPEG whose
    codes do not fit each other (damage that OpenCV would show as a smear), or is not square:
    then it is not an aligned crop, and squeezing it would move the eyes. So does a 16-bit image whose values
    lie close together, as sensors of 10 to 12 bits and thermal cameras write them: 8 bits would lose the face,
    and how to stretch it is the camera's secret.
    """
    if not data:
        raise DataError("empty file")
    if _is_cut_short(data):
        raise DataError("cut short: the end of the image is missing")
    image = _decode_jpeg(data)
    if image is None:
        image = _decode_any(data)
    return image if size is None else fit_crop(image, size)


def decode_into(data: bytes, image: Images) -> None:
    """Decode as `decode_image` does, into `image` (size, size, 3) RGB uint8: the fast way to fill a batch."""
    if _decode_jpeg(data, image) is None:
        image[:] = decode_image(data, len(image))


def _decode_jpeg(data: bytes, into: Images | None = None) -> Images | None:
    """A JPEG, upright, or None for anything else, and for one that does not fit `into` as it is.

    libjpeg-turbo as OpenCV calls it, to the same values, but it reports damage and needs no copies.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    orientation = exif_orientation(data)
    if into is not None and orientation != 1:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        fits = into is None or into.shape[:2] == (height, width)
        if fits and height * width <= _MOST_PIXELS:
            pixels = np.asarray(simplejpeg.decode_jpeg(data, "RGB", buffer=into), np.uint8)
            return upright(pixels, orientation)
    except ValueError as error:
        # CMYK and other rarities are for OpenCV to decode or to refuse
        if not str(error).startswith(("Corrupt JPEG data", "Premature end")):
            return None
        raise DataError(f"damaged: {error}") from error
    if fits:
        raise DataError(f"claims {width} x {height} pixels; expected at most {_MOST_PIXELS:,}")
    return None


def _decode_any(data: bytes) -> Images:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise DataError(f"cannot be decoded ({error.err})") from error
    if pixels is None:
        raise DataError("not an image that OpenCV can decode")
    return np.asarray(cv2.cvtColor(_eight_bits(pixels), cv2.COLOR_BGR2RGB), np.uint8)


def _eight_bits(pixels: npt.NDArray[Any]) -> Images:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16:
        raise DataError(f"holds {pixels.dtype} values; expected 8 or 16 bits a channel")
    low, high = int(pixels.min()), int(pixels.max())
    if (high >> 8) - (low >> 8) < _FEWEST_LEVELS:
        raise DataError(
            f"16-bit values lie within {low}..{high} of 0..65535, so that 8 bits would keep {(high >> 8) - (low >> 8)} "
            "steps of grey; stretch them to the whole range first"
        )
    return (pixels >> 8).astype(np.uint8)


def read_image(path: Source, size: int | None = FACE_SIZE) -> Images:
    """Read an image file as `decode_image` does; raises DataError naming the file."""
    try:
        return decode_image(Path(path).read_bytes(), size)
    except OSError as error:
        raise DataError(f"{path}: {_os_reason(error)}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _is_cut_short(data: bytes) -> bool:
    if data.startswith(b"\xff\xd8"):  # JPEG: an end marker must follow the last start of scan
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in data[-64:]
    return False


def fit_crop(image: Images, size: int) -> Images:
    """A crop (H, H, 3) at another size, averaged down or bilinear up; raises DataError for one that is not square."""
    height, width = image.shape[:2]
    if height != width:
        raise DataError(
            f"{width} x {height} is not square, so not an aligned crop; align it to {size} x {size} first "
            "(`ppfr prepare` does)"
        )
    if height == size:
        return image
    how = cv2.INTER_AREA if height > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=how), np.uint8)


def _os_reason(error: OSError) -> str:
    return "file not found" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))


def read_images(paths: Sequence[Path], size: int) -> list[Images | DataError]:
    """Read many files with a pool of threads; one that cannot be read gives its DataError in its place."""
    return in_threads(lambda row: read_image(paths[row], size), range(len(paths)))


def read_batch(fetch: Callable[[int], bytes], rows: Sequence[int], size: int) -> tuple[Images, dict[int, DataError]]:
    """Fetch and decode images (n, size, size, 3) straight into their batch, and what went wrong, by position.

    `fetch` gives the encoded image of a row, from several threads at a time; the places of images that cannot be read
    hold no image.
    """
    images = np.empty((len(rows), size, size, 3), np.uint8)

    def attempt(position: int) -> None:
        decode_into(fetch(rows[position]), images[position])

    results = in_threads(attempt, range(len(rows)))
    return images, {position: error for position, error in enumerate(results) if error is not None}


def in_threads(task: Callable[[int], Result], items: Sequence[int]) -> list[Result | DataError]:
    """`task` of every item, with threads for the cores and for waiting; a DataError takes its result's place."""

    def attempt(part: Sequence[int]) -> list[Result | DataError]:
        results: list[Result | DataError] = []
        for item in part:
            try:
                results.append(task(item))
            except DataError as error:
                results.append(error)
        return results

    if len(items) <= _ITEMS_A_TASK:
        return attempt(items)
    # a task for each item would cost more than finding out that a file is missing
    parts = [items[start : start + _ITEMS_A_TASK] for start in range(0, len(items), _ITEMS_A_TASK)]
    with ThreadPoolExecutor(max_workers=min(16, 2 * usable_cores())) as pool:
        return [result for part in pool.map(attempt, parts) for result in part]


def usable_cores() -> int:
    """Cores that this process may use, which a container or `taskset` can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_tensor(images: Images) -> torch.Tensor:
    """Turn uint8 RGB (N, H, W, 3) into float32 (N, 3, H, W) in [-1, 1]; else raises DataError."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 3)")
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


# ------------------------------------------------------------------------------------------------ orientation


def exif_orientation(jpeg: bytes) -> int:
    """The orientation of a JPEG (EXIF 2.3), 1 to 8; 1, upright, when there is none or it is damaged."""
    position = 2
    while jpeg[position : position + 1] == b"\xff" and position + 4 <= len(jpeg):
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4])
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0xDA:  # pixels follow
            break
        segment = jpeg[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _tagged(segment[6:])
        position += 2 + length
    return 1


def _tagged(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF header."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION and kind == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1


def upright(image: Images, orientation: int) -> Images:
    """An image (H, W, C) turned and mirrored as its orientation, 1 to 8, asks for."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
