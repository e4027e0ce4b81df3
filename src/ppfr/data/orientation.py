"""How a camera was held, as JPEG files tell it (EXIF 2.3, tag 0x0112)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_TAG = 0x0112
_SHORT = 3


def exif_orientation(jpeg: bytes) -> int:
    """1 to 8 as EXIF numbers them; 1, upright, when a JPEG says nothing or what it says is damaged."""
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
            if tag == _TAG and kind == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1


def upright(image: Pixels, orientation: int) -> Pixels:
    """An image (H, W, C) turned and mirrored as its orientation, 1 to 8, asks for."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])
