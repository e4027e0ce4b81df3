"""Pictures of payloads and of what attacks recover, as uint8 RGB arrays and PNG files."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.methods.common.payload import Payload, TensorSpec
from ppfr.reports.lettering import LINE_SPACING, letter
from ppfr.util.errors import PayloadError, ShapeError
from ppfr.util.files import atomic_write

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MOST_TILES = 36
# neutral, so that it neither glares on a dark page nor vanishes on a light one
BACKGROUND = (44, 47, 54)
PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (104, 108, 116)

_GAP = 2
# an image whose values, but for one in fifty, lie within this share of their range shows nothing as it is
_FAINT = 1 / 3
# of the picture's side: smaller tiles show nothing, and taller strips leave nothing for the rest
_LEAST_TILE = 1 / 9
_TALLEST_STRIP = 1 / 4


# ---------------------------------------------------------------------------------------- what a payload holds


@dataclass(frozen=True)
class _Part:
    """Tensors of a payload that are drawn alike: one image, one set of channels, or one map."""

    kind: Literal["image", "faint", "glaring", "channels", "map"]
    planes: Floats
    spec: TensorSpec

    @property
    def count(self) -> int:
        return len(self.planes)

    @property
    def extent(self) -> str:
        height, width = self.planes.shape[1:]
        return f"{height}×{width}"


@dataclass(frozen=True)
class _Placed:
    """A part and where it goes: top, left, height and width in pixels, and which planes fit."""

    part: _Part
    box: tuple[int, int, int, int]
    shown: npt.NDArray[np.intp]


def payload_picture(payload: Payload, row: int = 0, *, size: int = 224) -> Images:
    """What the server sees of one image, as (size, size, 3) RGB uint8.

    A three-channel tensor within [-1,1] (or [0,1]) is shown as the image it is; one of little contrast, or one called
    `image` that goes beyond, is stretched, as any attacker would do. Of other tensors each channel is a tile, stretched
    to its own contrast around its median; of more than 36 an even selection is shown, which `describe_payload` puts
    into words. Single maps beside other tensors stand in a strip below, from dark (their least value) to bright. Raises
    PayloadError for a row that is not in the payload, ShapeError below 64 pixels.
    """
    canvas = np.full((size, size, 3), BACKGROUND, np.uint8)
    for placed in _layout(_parts(payload, row), size):
        top, left, height, width = placed.box
        canvas[top : top + height, left : left + width] = _draw(placed, size)
    return canvas


def describe_payload(payload: Payload, *, size: int = 224) -> str:
    """A caption for `payload_picture(payload, size=size)`: what is shown, how, and what is left out."""
    placed = _layout(_parts(payload, 0), size)
    sentences = [_describe(one) for one in placed if one.part.kind != "map"]
    maps = [one.part for one in placed if one.part.kind == "map"]
    if maps:
        sizes = Counter(part.extent for part in maps)
        listed = ", ".join(f"{count} of {extent}" if count > 1 else extent for extent, count in sizes.items())
        plural = "s" if len(maps) > 1 else ""
        sentences.append(f"{len(maps)} map{plural} ({listed}), bright where large")
    return "; ".join(sentences)


def _describe(placed: _Placed) -> str:
    part = placed.part
    if part.kind == "image":
        return f"the image as it is, {part.extent} RGB"
    if part.kind == "faint":
        return f"a faint image, {part.extent} RGB, stretched to its own contrast"
    if part.kind == "glaring":
        return f"an image beyond black and white, {part.extent} RGB, squeezed to its own contrast"
    meaning = f" – {part.spec.meaning} –" if part.spec.meaning else ","
    counted = f"{part.count} channels of {part.extent}{meaning}"
    stretched = "each stretched to its own contrast"
    if len(placed.shown) == part.count:
        return f"{counted} {stretched}"
    return f"{counted} of which {len(placed.shown)}, evenly selected, are shown, {stretched}"


def _parts(payload: Payload, row: int) -> list[_Part]:
    if not 0 <= row < len(payload):
        raise PayloadError(f"row {row} is not in a payload of {len(payload)} images; expected 0..{len(payload) - 1}")
    return [_part(name, payload[name][row], spec) for name, spec in payload.schema.tensors.items()]


def _part(name: str, tensor: Tensor, spec: TensorSpec) -> _Part:
    values = tensor.detach().cpu().float().numpy()
    if values.ndim < 2:
        values = _fold(values.reshape(-1))
    planes = np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]))
    if not np.isfinite(planes).all():
        raise PayloadError(f"a tensor of shape {spec.shape} holds values that are not finite; it cannot be shown")
    if len(planes) == 3 and spec.dtype is torch.uint8:
        planes = planes / 255
    if len(planes) == 3 and planes.min() >= -1.05 and planes.max() <= 1.05:
        low, high = np.percentile(planes, (1, 99))
        span = 1.0 if planes.min() >= 0 else 2.0
        return _Part("faint" if 0 < high - low < _FAINT * span else "image", planes, spec)
    if len(planes) == 3 and name == "image":
        return _Part("glaring", planes, spec)
    return _Part("map" if len(planes) == 1 else "channels", planes, spec)


def _fold(values: Floats) -> Floats:
    """A vector as a nearly square plane; the cells behind its end repeat its least value."""
    width = math.ceil(math.sqrt(max(1, len(values))))
    cells = np.full(width * max(1, math.ceil(len(values) / width)), values.min(initial=0), np.float32)
    cells[: len(values)] = values
    return cells.reshape(-1, width)


# ---------------------------------------------------------------------------------------------- where it goes


def _layout(parts: Sequence[_Part], size: int) -> list[_Placed]:
    """Large parts share the square, maps beside them stand in a strip at the bottom."""
    if size < 64:
        raise ShapeError(f"a picture of {size} pixels is too small; expected size >= 64")
    maps = [part for part in parts if part.kind == "map"]
    large = [part for part in parts if part.kind != "map"]
    if not large:
        return _share(maps, (0, 0, size, size), size)
    if not maps:
        return _share(large, (0, 0, size, size), size)
    side = min(int(size * _TALLEST_STRIP), (size - _GAP * (len(maps) - 1)) // len(maps))
    left = (size - side * len(maps) - _GAP * (len(maps) - 1)) // 2
    strip = [
        _Placed(part, (size - side, left + index * (side + _GAP), side, side), np.arange(1))
        for index, part in enumerate(maps)
    ]
    return [*_share(large, (0, 0, size - side - 2 * _GAP, size), size), *strip]


def _share(parts: Sequence[_Part], box: tuple[int, int, int, int], size: int) -> list[_Placed]:
    """Give each part a cell of one grid over the box."""
    top, left, height, width = box
    rows, columns, _ = _grid(len(parts), height, width)
    gap = 3 * _GAP
    cell = (height - gap * (rows - 1)) // rows, (width - gap * (columns - 1)) // columns
    placed = []
    for index, part in enumerate(parts):
        row, column = divmod(index, columns)
        place = (top + row * (cell[0] + gap), left + column * (cell[1] + gap), *cell)
        placed.append(_Placed(part, place, _select(part, cell, size)))
    return placed


def _select(part: _Part, cell: tuple[int, int], size: int) -> npt.NDArray[np.intp]:
    """Which planes of a part fit into a cell at a size at which they can still be made out."""
    if part.kind != "channels":
        return np.arange(part.count)
    if part.count <= MOST_TILES and _grid(part.count, *cell)[2] >= size * _LEAST_TILE:
        return np.arange(part.count)
    return np.linspace(0, part.count - 1, _full_grid(part.count, cell, size * _LEAST_TILE)).round().astype(np.intp)


def _full_grid(count: int, cell: tuple[int, int], least: float) -> int:
    """How many of `count` tiles to show: as many as fill a grid without gaps and with little of the cell left over."""
    options = [(1, float(min(cell) ** 2))]
    for tiles in range(2, min(count, MOST_TILES) + 1):
        rows, columns, side = _grid(tiles, *cell)
        if rows * columns == tiles and side >= least:
            options.append((tiles, float(tiles * (side + _GAP) ** 2)))
    most = max(covered for _, covered in options)
    return max(tiles for tiles, covered in options if covered >= 0.9 * most)


def _grid(count: int, height: int, width: int) -> tuple[int, int, int]:
    """Rows, columns and side of the largest square tiles of which `count` fit into height x width pixels."""
    options = []
    for columns in range(1, count + 1):
        rows = math.ceil(count / columns)
        side = min((width - _GAP * (columns - 1)) // columns, (height - _GAP * (rows - 1)) // rows)
        options.append((side, -rows * columns, columns, rows))
    side, _, columns, rows = max(options)
    return rows, columns, side


# ---------------------------------------------------------------------------------------------------- drawing


def _draw(placed: _Placed, size: int) -> Images:
    """One part as RGB of its box's height and width."""
    _, _, height, width = placed.box
    part = placed.part
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    if part.kind == "channels":
        rows, columns, side = _grid(len(placed.shown), height, width)
        tiles = [np.repeat(_stretch(_resize(part.planes[index], side))[..., None], 3, 2) for index in placed.shown]
        pitch = side + _GAP
        top, left = (height - rows * pitch + _GAP) // 2, (width - columns * pitch + _GAP) // 2
        for index, tile in enumerate(tiles):
            row, column = divmod(index, columns)
            canvas[top + row * pitch :, left + column * pitch :][:side, :side] = tile
        return canvas
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    draw = {"image": _as_image, "faint": _as_stretched, "glaring": _as_stretched, "map": _as_map}[part.kind]
    canvas[top : top + side, left : left + side] = draw(part.planes, side)
    return canvas


def _resize(plane: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Resize to a square: averaging down, and up with visible pixels where the plane is tiny."""
    if max(plane.shape[:2]) > side:
        how = cv2.INTER_AREA
    else:
        how = cv2.INTER_NEAREST if min(plane.shape[:2]) < 48 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(plane, (side, side), interpolation=how))


def _stretch(plane: Floats) -> Images:
    """Grey around the median, black and white at the 99th percentile of the distance from it; flat planes are grey."""
    distance = plane - np.median(plane)
    reach = float(np.percentile(np.abs(distance), 99))
    scaled = distance / reach if reach > 1e-12 else np.zeros_like(plane)
    return np.asarray(np.clip(127.5 + 127.5 * scaled, 0, 255).round(), np.uint8)


def _as_image(planes: Floats, side: int) -> Images:
    """RGB in [-1,1] as bytes; values that never fall below 0 are taken to be in [0,1]."""
    unit = planes if planes.min() >= 0 else planes / 2 + 0.5
    return _resize(np.asarray(np.clip(unit * 255, 0, 255).round(), np.uint8).transpose(1, 2, 0), side)


def _as_stretched(planes: Floats, side: int) -> Images:
    """RGB with all three colours stretched alike."""
    return _resize(_stretch(planes).transpose(1, 2, 0), side)


def _as_map(planes: Floats, side: int) -> Images:
    plane = planes[0]
    low, high = float(plane.min()), float(plane.max())
    unit = (plane - low) / (high - low) if high > low else np.zeros_like(plane)
    grey = _resize(np.asarray((unit * 255).round(), np.uint8), side)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB), np.uint8)


# --------------------------------------------------------------------------------------------- contact sheets


def contact_sheet(
    rows: Sequence[Sequence[Images]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    cell: int = 144,
) -> Images:
    """Put rows of RGB uint8 images on white paper, each scaled into a square of `cell` pixels, with labels.

    Rows may be of different length. Labels stand left of the rows and above the columns, wrap, and end in an ellipsis
    where they do not fit. Raises ShapeError for no image, for what is no image, and for labels that are not one for
    each row or column.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ShapeError("a contact sheet needs at least one image; got none")
    for what, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, columns)):
        if len(labels) not in (0, count):
            raise ShapeError(f"{len(labels)} {what} labels for {count} {what}s; expected one each, or none")
    margin, gap = max(8, cell // 9), max(4, cell // 18)
    height = max(9, cell // 9)
    most = max(1, int(cell / (LINE_SPACING * height)) - 1)
    side = [letter(label, height, INK, width=int(1.1 * cell), lines=most, bold=True) for label in row_labels]
    head = [letter(label, height, FAINT, width=cell, lines=3) for label in column_labels]
    left = margin + (max(label.shape[1] for label in side) + 2 * gap if side else 0)
    top = margin + (max(label.shape[0] for label in head) + gap if head else 0)
    pitch = cell + gap
    sheet = np.full((top + len(rows) * pitch - gap + margin, left + columns * pitch - gap + margin, 3), PAPER, np.uint8)
    for column, label in enumerate(head):
        _paste(sheet, label, top - gap - label.shape[0], left + column * pitch + (cell - label.shape[1]) // 2)
    for index, images in enumerate(rows):
        place = top + index * pitch
        if side:
            _paste(sheet, side[index], place + (cell - side[index].shape[0]) // 2, margin)
        for column, image in enumerate(images):
            sheet[place : place + cell, left + column * pitch :][:, :cell] = _fit(image, cell)
    return sheet


def recovery_picture(
    originals: Sequence[Images],
    seen: Sequence[Images],
    recovered: Sequence[Images] | None = None,
    *,
    column_labels: Sequence[str] = (),
    cell: int = 144,
) -> Images:
    """A contact sheet of photos, what the server sees of them and, where given, what an attack recovers."""
    rows, labels = [originals, seen], ["photo", "what the server sees"]
    if recovered is not None:
        rows.append(recovered)
        labels.append("what the attack recovers")
    return contact_sheet(rows, labels, column_labels, cell=cell)


def check_picture(image: Images) -> None:
    """Raise ShapeError unless `image` is RGB uint8 (H, W, 3) with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ShapeError(f"picture is {image.dtype} {image.shape}; expected RGB uint8 (height, width, 3)")


def _fit(image: Images, cell: int) -> Images:
    """The image scaled into a square; what it does not fill is background."""
    check_picture(image)
    scale = cell / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = image if scale == 1 else np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
    square = np.full((cell, cell, 3), BACKGROUND, np.uint8)
    top, left = (cell - scaled.shape[0]) // 2, (cell - scaled.shape[1]) // 2
    square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return square


def _paste(sheet: Images, part: Images, top: int, left: int) -> None:
    sheet[top : top + part.shape[0], left : left + part.shape[1]] = part


# ---------------------------------------------------------------------------------------------------- PNG files


def save_png(path: Path | str, image: Images) -> None:
    """Write an RGB uint8 image (H, W, 3) as PNG, atomically; raises ShapeError for anything else."""
    atomic_write(path, _png(image))


def png_data_uri(image: Images) -> str:
    """An RGB uint8 image (H, W, 3) as a `data:image/png` address; raises ShapeError for anything else."""
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode("ascii")


def _png(image: Images) -> bytes:
    check_picture(image)
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise ShapeError(f"OpenCV could not write a picture of {image.shape} as PNG")
    return data.tobytes()
