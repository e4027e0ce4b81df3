"""Payloads drawn as RGB images: what the server receives of one face."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.methods.common.payload import Payload, TensorSpec
from ppfr.util.errors import PayloadError, ShapeError

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MOST_TILES = 36
# neutral, so that it neither glares on a dark page nor vanishes on a light one
BACKGROUND = (44, 47, 54)

_GAP = 2
# an image whose values, but for one in fifty, lie within this share of their range shows nothing as it is
_FAINT = 1 / 3
# of the picture's side: smaller tiles show nothing, and taller strips leave nothing for the rest
_LEAST_TILE = 1 / 9
_TALLEST_STRIP = 1 / 4


# ---------------------------------------------------------------------------------------- what a payload holds


@dataclass(frozen=True)
class _DrawnTensor:
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

    part: _DrawnTensor
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


def _parts(payload: Payload, row: int) -> list[_DrawnTensor]:
    if not 0 <= row < len(payload):
        raise PayloadError(f"row {row} is not in a payload of {len(payload)} images; expected 0..{len(payload) - 1}")
    return [_part(name, payload[name][row], spec) for name, spec in payload.schema.tensors.items()]


def _part(name: str, tensor: Tensor, spec: TensorSpec) -> _DrawnTensor:
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
        return _DrawnTensor("faint" if 0 < high - low < _FAINT * span else "image", planes, spec)
    if len(planes) == 3 and name == "image":
        return _DrawnTensor("glaring", planes, spec)
    return _DrawnTensor("map" if len(planes) == 1 else "channels", planes, spec)


def _fold(values: Floats) -> Floats:
    """A vector as a nearly square plane; the cells behind its end repeat its least value."""
    width = math.ceil(math.sqrt(max(1, len(values))))
    cells = np.full(width * max(1, math.ceil(len(values) / width)), values.min(initial=0), np.float32)
    cells[: len(values)] = values
    return cells.reshape(-1, width)


# ---------------------------------------------------------------------------------------------- where it goes


def _layout(parts: Sequence[_DrawnTensor], size: int) -> list[_Placed]:
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


def _share(parts: Sequence[_DrawnTensor], box: tuple[int, int, int, int], size: int) -> list[_Placed]:
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


def _select(part: _DrawnTensor, cell: tuple[int, int], size: int) -> npt.NDArray[np.intp]:
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
