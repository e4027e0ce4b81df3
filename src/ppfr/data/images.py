"""One encoded image into RGB uint8, with every way it can be unusable told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ppfr.errors import DataError

Images = npt.NDArray[np.uint8]
Source = str | os.PathLike[str]

FACE_SIZE = 112
# a sensor of 12 bits in a 16-bit file spans 16 of 256 steps
_FEWEST_LEVELS = 32
_FILES_A_TASK = 16
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def decode_image(data: bytes, size: int | None = FACE_SIZE) -> Images:
    """Decode an encoded image into (size, size, 3) RGB uint8; with `size=None` into its own height and width.

    Grey, palette, alpha, 16-bit and CMYK images become 8-bit RGB (alpha is dropped, 16 bits lose the lower
    8). A square image of another size is resized (area averaging down, bilinear up). Raises DataError when
    the data is not an image, is cut short (OpenCV would fill the missing part with grey), or is not square:
    then it is not an aligned crop, and squeezing it would move the eyes. So does a 16-bit image whose values
    lie close together, as sensors of 10 to 12 bits and thermal cameras write them: 8 bits would lose the face,
    and how to stretch it is the camera's secret.
    """
    if not data:
        raise DataError("empty file")
    if _is_cut_short(data):
        raise DataError("cut short: the end of the image is missing")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise DataError(f"cannot be decoded ({error.err})") from error
    if pixels is None:
        raise DataError("not an image that OpenCV can decode")
    image = np.asarray(cv2.cvtColor(_eight_bits(pixels), cv2.COLOR_BGR2RGB), np.uint8)
    return image if size is None else _fit(image, size)


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


def _fit(image: Images, size: int) -> Images:
    height, width = image.shape[:2]
    if height != width:
        raise DataError(f"{width} x {height} is not square, so not an aligned crop; align it to {size} x {size} first")
    if height == size:
        return image
    how = cv2.INTER_AREA if height > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=how), np.uint8)


def _os_reason(error: OSError) -> str:
    return "file not found" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))


def read_images(paths: Sequence[Path], size: int) -> list[Images | DataError]:
    """Read many files with a pool of threads; one that cannot be read gives its DataError in its place."""

    def attempt(path: Path) -> Images | DataError:
        try:
            return read_image(path, size)
        except DataError as error:
            return error

    # a task for each file would cost more than finding out that one is missing
    parts = [paths[start : start + _FILES_A_TASK] for start in range(0, len(paths), _FILES_A_TASK)]
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        return [image for part in pool.map(lambda part: [attempt(path) for path in part], parts) for image in part]


def to_tensor(images: Images) -> torch.Tensor:
    """Turn uint8 RGB (N, H, W, 3) into float32 (N, 3, H, W) in [-1, 1]; else raises DataError."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 3)")
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)
