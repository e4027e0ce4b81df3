"""Contact sheets of labelled pictures, and RGB images as PNG files and data addresses."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ppfr.auditing.payload_pictures import BACKGROUND
from ppfr.util.errors import ShapeError
from ppfr.util.files import atomic_write

Images = npt.NDArray[np.uint8]

PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (104, 108, 116)


def contact_sheet(
    rows: Sequence[Sequence[Images]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    cell: int = 144,
) -> Images:
    """Put rows of RGB uint8 images on white paper, each scaled into a square of `cell` pixels, with labels.

    Rows may be of different length. Labels stand left of the rows and above the columns, wrap, and end in an ellipsis
    where they do not fit. Raises ShapeError for no image, for an array that is not RGB uint8, and for labels that are
    not one for each row or column.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ShapeError("a contact sheet needs at least one image; got none")
    for what, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, columns)):
        if len(labels) not in (0, count):
            raise ShapeError(f"{len(labels)} {what} labels for {count} {what}s; expected one each, or none")
    margin, gap, size = max(8, cell // 9), max(4, cell // 18), max(9, cell // 9)
    side = [
        _Label(label, size, int(1.1 * cell), lines=max(1, int(cell / (1.6 * size)) - 1), bold=True)
        for label in row_labels
    ]
    head = [_Label(label, size, cell, lines=3) for label in column_labels]
    left = margin + (max(label.width for label in side) + 2 * gap if side else 0)
    top = margin + (max(label.height for label in head) + gap if head else 0)
    pitch = cell + gap
    sheet = Image.new("RGB", (left + columns * pitch - gap + margin, top + len(rows) * pitch - gap + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(head):
        label.draw(draw, left + column * pitch + (cell - label.width) // 2, top - gap - label.height, FAINT)
    for index, images in enumerate(rows):
        place = top + index * pitch
        if side:
            side[index].draw(draw, margin, place + (cell - side[index].height) // 2, INK)
        for column, image in enumerate(images):
            check_picture(image)
            tile = ImageOps.pad(Image.fromarray(image), (cell, cell), Image.Resampling.BICUBIC, BACKGROUND)
            sheet.paste(tile, (left + column * pitch, place))
    return np.array(sheet)


class _Label:
    """Text wrapped to `width` pixels in at most `lines` lines; what does not fit becomes an ellipsis."""

    def __init__(self, text: str, size: int, width: int, *, lines: int, bold: bool = False) -> None:
        self._font = _font(size, bold)
        characters = max(1, int(width / (0.62 * size)))
        self._text = "\n".join(textwrap.wrap(text, characters, max_lines=lines, placeholder="…"))
        canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        left, _, right, _ = canvas.multiline_textbbox((0, 0), self._text, self._font)
        # the same height for any letters, so that labels side by side share a baseline
        tall = "\n".join("Ág" for _ in self._text.split("\n"))
        _, top, _, bottom = canvas.multiline_textbbox((0, 0), tall, self._font)
        self._offset = left, top
        self.width, self.height = max(1, round(right - left)), round(bottom - top)

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int, colour: tuple[int, int, int]) -> None:
        draw.multiline_text((left - self._offset[0], top - self._offset[1]), self._text, colour, self._font)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    from matplotlib.font_manager import FontProperties, findfont  # slow to import

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")), size)


def check_picture(image: Images) -> None:
    """Raise ShapeError unless `image` is RGB uint8 (H, W, 3) with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ShapeError(f"picture is {image.dtype} {image.shape}; expected RGB uint8 (height, width, 3)")


def save_png(path: Path | str, image: Images) -> None:
    """Write an RGB uint8 image (H, W, 3) as PNG, atomically; raises ShapeError for anything else."""
    atomic_write(path, _png(image))


def png_data_uri(image: Images) -> str:
    """An RGB uint8 image (H, W, 3) as a `data:image/png` address; raises ShapeError for anything else."""
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode("ascii")


def _png(image: Images) -> bytes:
    check_picture(image)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return stream.getvalue()
