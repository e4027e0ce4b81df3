"""Search among templates in memory: exact inner products, two bytes a value."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from ppfr.util.errors import GalleryError

Vectors = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]

# rows of one block; results of a block and a batch of queries fit into the processor's cache
_ROWS = 16384
# queries that go through the blocks together
_QUERIES = 64
# pairs of a template and a query whose scores are computed in full together
_PAIRS = 16384
_LEVELS = 127
# the integer kernels want unsigned templates: this stands for 0
_ZERO = 128
# a value is (high + low / 256) times its row's scale
_FINE = 256
# the scan of a block by integer products: scores (R,Q) but for the queries' scale, and where they reach `least`
_SCAN = f"""
<ir_version: 8, opset_import: ["": 17]>
scan (uint8[R,W] templates, float[R,1] scale, int8[W,Q] queries, float[1,Q] least)
    => (float[R,Q] scores, int64[2,N] found) <uint8 zero = {{{_ZERO}}}>
{{
    products = MatMulInteger(templates, queries, zero)
    levels = Cast<to = {onnx.TensorProto.FLOAT}>(products)
    scores = Mul(levels, scale)
    enough = GreaterOrEqual(scores, least)
    by_query = Transpose<perm = [1, 0]>(enough)
    found = NonZero(by_query)
}}
"""


@dataclass(frozen=True)
class Match:
    """A template that was found, and its cosine to the query in [-1,1]."""

    key: str
    score: float


class Index(Protocol):
    """Templates by key, searched by cosine. Derived data: it can always be rebuilt from the gallery."""

    def __len__(self) -> int:
        """How many templates there are."""

    def add(self, keys: Sequence[str], templates: npt.ArrayLike) -> None:
        """Add or replace templates (N,D) of any length but 0. Raises GalleryError, changing nothing."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove templates; unknown keys are ignored."""

    def search(self, queries: npt.ArrayLike, limit: int) -> list[list[Match]]:
        """The best `limit` matches of each query (Q,D), best first. Raises GalleryError."""

    def keys(self) -> set[str]:
        """Keys of all templates."""

    def close(self) -> None:
        """Release what is held outside this process."""


class SearchUnavailable(GalleryError):
    """An index outside this process does not answer; the gallery itself is not affected."""


class ExactIndex:
    """Exact search by inner products of unit templates, all in memory.

    A value takes 16 bits, in a high and a low byte. A scan of the high bytes alone, as integers, gives scores whose
    largest possible error is known; rows that might belong to the best are then computed in full. The result is that of
    16-bit templates searched one by one. `threads` 0 leaves their number to ONNX Runtime. Safe for use from several
    threads.
    """

    def __init__(self, size: int, *, threads: int = 0) -> None:
        if size < 1:
            raise GalleryError(f"an index of templates of length {size}; expected at least 1")
        self.size = size
        # integer products want whole vectors of the processor
        self._width = -(-size // 64) * 64
        self._scan = _open_scan(threads)
        self._blocks: list[_Block] = []
        self._places: dict[str, int] = {}
        self._keys: list[str] = []
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of the templates in memory."""
        return sum(part.nbytes for block in self._blocks for part in block.parts)

    def add(self, keys: Sequence[str], templates: npt.ArrayLike) -> None:
        """As `Index.add`."""
        units = self._padded(unit_templates(keys, templates, self.size))
        with self._lock:
            fresh = [row for row, key in enumerate(keys) if key not in self._places]
            for row in sorted(set(range(len(keys))) - set(fresh)):
                block, at = divmod(self._places[keys[row]], _ROWS)
                self._blocks[block].write(at, units[row : row + 1])
            first = 0
            while first < len(fresh):
                block, at = divmod(len(self._keys), _ROWS)
                if block == len(self._blocks):
                    self._blocks.append(_Block(self._width))
                rows = fresh[first : first + _ROWS - at]
                self._blocks[block].write(at, units[rows])
                for row in rows:
                    self._places[keys[row]] = len(self._keys)
                    self._keys.append(keys[row])
                first += len(rows)

    def remove(self, keys: Sequence[str]) -> None:
        """As `Index.remove`; the bytes of removed templates are overwritten."""
        with self._lock:
            for key in keys:
                place = self._places.pop(key, None)
                if place is None:
                    continue
                moved = self._keys.pop()
                last, at = divmod(len(self._keys), _ROWS)
                if place != len(self._keys):
                    # the last one takes the free place
                    block, row = divmod(place, _ROWS)
                    for target, source in zip(self._blocks[block].parts, self._blocks[last].parts, strict=True):
                        target[row] = source[at]
                    self._keys[place] = moved
                    self._places[moved] = place
                self._blocks[last].clear(at)

    def search(self, queries: npt.ArrayLike, limit: int) -> list[list[Match]]:
        """As `Index.search`."""
        units = self._padded(unit_queries(queries, self.size, limit))
        with self._lock:
            found: list[list[Match]] = []
            for first in range(0, len(units), _QUERIES):
                found += self._search(units[first : first + _QUERIES], min(limit, len(self._keys)))
            return found

    def keys(self) -> set[str]:
        """As `Index.keys`."""
        with self._lock:
            return set(self._keys)

    def close(self) -> None:
        """Nothing is held outside this process."""

    def _padded(self, units: Vectors) -> Vectors:
        return np.pad(units, ((0, 0), (0, self._width - self.size)))

    def _search(self, units: Vectors, limit: int) -> list[list[Match]]:
        best = np.full((len(units), limit), -np.inf, np.float32)
        places = np.zeros((len(units), limit), np.int64)
        scale = _scale(units)
        levels = np.round(units / scale[:, None])
        error = np.linalg.norm(units - levels * scale[:, None], axis=1)
        queries = np.ascontiguousarray(levels.T.astype(np.int8))
        for number, block in enumerate(self._blocks if limit else []):
            filled = min(_ROWS, len(self._keys) - number * _ROWS)
            if filled <= 0:
                break
            asked = {"templates": block.high[:filled], "scale": block.scale[:filled, None], "queries": queries}
            doubt = error + block.error(filled)
            # the worst of the best so far; at first, what the best scores of the scan are worth at least
            floor = best[:, -1]
            if not number:
                (rough,) = self._scan.run(["scores"], asked | {"least": np.full_like(scale, np.inf)[None]})
                nth = min(limit, filled)
                floor = np.partition(rough.T, -nth, axis=1)[:, -nth] * scale - doubt
            ((own, rows),) = self._scan.run(
                ["found"], asked | {"least": ((floor - doubt) / scale).astype(np.float32)[None]}
            )
            # in parts: where all templates are alike, all are looked at
            for first in range(0, len(own), _PAIRS):
                part = slice(first, first + _PAIRS)
                scores = block.exact(rows[part], units[own[part]])
                best, places = _merged(best, places, own[part], rows[part] + number * _ROWS, scores)
        return [
            [Match(self._keys[place], score) for score, place in zip(*row, strict=True) if score > -np.inf]
            for row in zip(best.tolist(), places.tolist(), strict=True)
        ]


class _Block:
    """Up to `_ROWS` templates as high and low bytes, a scale for each, and how much the high byte leaves out."""

    def __init__(self, width: int) -> None:
        self.high = np.full((_ROWS, width), _ZERO, np.uint8)
        self.low = np.zeros((_ROWS, width), np.int8)
        self.scale = np.zeros(_ROWS, np.float32)
        self.left = np.zeros(_ROWS, np.float32)
        self.parts: tuple[npt.NDArray[Any], ...] = (self.high, self.low, self.scale, self.left)

    def write(self, row: int, units: Vectors) -> None:
        scale = _scale(units)
        levels = units / scale[:, None]
        high = np.round(levels)
        rows = slice(row, row + len(units))
        self.high[rows] = high + _ZERO
        self.low[rows] = np.round((levels - high) * _FINE).clip(-128, 127)
        self.scale[rows] = scale
        self.left[rows] = np.linalg.norm(units - high * scale[:, None], axis=1) + 1e-4

    def clear(self, row: int) -> None:
        self.high[row] = _ZERO
        self.low[row] = self.scale[row] = self.left[row] = 0

    def error(self, filled: int) -> float:
        """How far a score of the scan can be off for what the high byte leaves out."""
        return float(self.left[:filled].max()) + 2e-6

    def exact(self, rows: _Places, units: Vectors) -> Vectors:
        """Scores (N,) of rows (N,) with as many queries (N,W), in full."""
        values = self.low[rows].astype(np.float32)
        values /= _FINE
        values += self.high[rows]
        values -= _ZERO
        values *= units
        return np.asarray(values.sum(1) * self.scale[rows])


def _scale(units: Vectors) -> Vectors:
    return np.asarray(np.maximum(np.abs(units).max(1), 1e-12) / _LEVELS, np.float32)


def _merged(
    best: Vectors,
    places: npt.NDArray[np.int64],
    queries: npt.NDArray[np.int64],
    found: npt.NDArray[np.int64],
    scores: Vectors,
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """The best scores and places (Q,K), best first, after more were found (N,) for queries (N,) in ascending order."""
    counts = np.bincount(queries, minlength=len(best))
    column = np.arange(len(queries)) - (counts.cumsum() - counts)[queries]
    more = np.full((len(best), counts.max(initial=0)), -np.inf, np.float32)
    where = np.zeros(more.shape, np.int64)
    more[queries, column], where[queries, column] = scores, found
    together, everywhere = np.hstack([best, more]), np.hstack([places, where])
    order = np.argsort(-together, axis=1, kind="stable")[:, : best.shape[1]]
    return np.take_along_axis(together, order, 1), np.take_along_axis(everywhere, order, 1)


def _open_scan(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait for the next block would take the cores that all else needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = onnx.parser.parse_model(_SCAN).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def unit_templates(keys: Sequence[str], templates: npt.ArrayLike, size: int) -> Vectors:
    """Templates (N,size) at unit length; raises GalleryError unless each has a key of its own and a direction."""
    units = _unit_rows(templates, size, "templates")
    if len(keys) != len(units):
        raise GalleryError(f"{len(keys)} keys for {len(units)} templates; expected one each")
    if len(set(keys)) != len(keys):
        raise GalleryError("a key stands twice among the templates to add")
    return units


def unit_queries(queries: npt.ArrayLike, size: int, limit: int) -> Vectors:
    """Queries (Q,size) at unit length; raises GalleryError for one without a direction and for a limit below 1."""
    if limit < 1:
        raise GalleryError(f"limit is {limit}; expected at least 1")
    return _unit_rows(queries, size, "queries")


def _unit_rows(vectors: npt.ArrayLike, size: int, what: str) -> Vectors:
    values = np.asarray(vectors, np.float32)
    if values.ndim != 2 or values.shape[1] != size:
        raise GalleryError(f"{what} have shape {values.shape}; expected (N, {size})")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.isfinite(values).all() or (norms == 0).any():
        raise GalleryError(f"{what} hold values that are not finite, or only zeros; a template must have a direction")
    return np.asarray(values / norms)
