"""One picture of the photographs that gave no face, with the reasons, to see at a glance what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ppfr.data.images import Images
from ppfr.data.preparation.photographs import Photograph, Photographs
from ppfr.data.preparation.report import Refused
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

MOST_THUMBNAILS = 60
_SIDE = 160
_TEXT_HEIGHT = 32
_COLUMNS = 6
_LETTERS = 26
_GREY, _BLACK, _WHITE = (96, 96, 96), (0, 0, 0), (255, 255, 255)


def draw_sheet(path: Path, photos: Photographs, refused: Sequence[Refused]) -> None:
    """Write a PNG with a tile for each refusal, at most 60, evenly spaced; grey where nothing can be read."""
    rows = np.unique(np.linspace(0, len(refused) - 1, min(len(refused), MOST_THUMBNAILS)).round().astype(int))
    tiles = [_tile(photos, refused[row]) for row in rows.tolist()]
    columns = min(_COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    sheet = np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])
    atomic_write(path, cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())


def _tile(photos: Photographs, refused: Refused) -> Images:
    tile = np.full((_SIDE + _TEXT_HEIGHT, _SIDE, 3), _WHITE, np.uint8)
    tile[:_SIDE] = _GREY
    try:
        image = photos.read(Photograph(refused.photograph, ""))
    except DataError:
        pass
    else:
        scale = _SIDE / max(image.shape[:2])
        width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
        left, top = (_SIDE - width) // 2, (_SIDE - height) // 2
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        tile[top : top + height, left : left + width] = small
    for line, text in enumerate((refused.reason, refused.photograph.rpartition("/")[2])):
        # OpenCV's letters are ASCII
        plain = "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:_LETTERS]
        cv2.putText(tile, plain, (3, _SIDE + 12 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.35, _BLACK, 1, cv2.LINE_AA)
    return tile
