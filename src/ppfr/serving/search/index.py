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
# queries are unsigned with 7 bits, so that no pair of products overflows the 16 bits of processors without VNNI
_QUERY_LEVELS, _QUERY_ZERO = 63, 64
# a value is (high + low / 256) times its row's scale
_FINE = 256
# the scan of a block by integer products: scores (Q,R) but for the queries' scale, and where they reach `least`
_SCAN = f"""
<ir_version: 8, opset_import: ["": 17]>
scan (uint8[Q,D] queries, int8[D,R] templates, int32[R] offset, float[R] scale, float[Q,1] least)
    => (float[Q,R] scores, int64[2,N] found)
{{
    products = MatMulInteger(queries, templates)
    signed = Sub(products, offset)
    levels = Cast<to = {onnx.TensorProto.FLOAT}>(signed)
    scores = Mul(levels, scale)
    enough = GreaterOrEqual(scores, least)
    found = NonZero(enough)
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
        return sum(block.nbytes for block in self._blocks)

    def add(self, keys: Sequence[str], templates: npt.ArrayLike) -> None:
        """As `Index.add`."""
        units = unit_templates(keys, templates, self.size)
        with self._lock:
            fresh = [row for row, key in enumerate(keys) if key not in self._places]
            for row in sorted(set(range(len(keys))) - set(fresh)):
                block, at = divmod(self._places[keys[row]], _ROWS)
                self._blocks[block].write(at, units[row : row + 1])
            first = 0
            while first < len(fresh):
                block, at = divmod(len(self._keys), _ROWS)
                if block == len(self._blocks):
                    self._blocks.append(_Block(self.size))
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
                    self._blocks[block].copy_from(row, self._blocks[last], at)
                    self._keys[place] = moved
                    self._places[moved] = place
                self._blocks[last].clear(at)

    def search(self, queries: npt.ArrayLike, limit: int) -> list[list[Match]]:
        """As `Index.search`."""
        units = unit_queries(queries, self.size, limit)
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

    def _search(self, units: Vectors, limit: int) -> list[list[Match]]:
        best = np.full((len(units), limit), -np.inf, np.float32)
        places = np.zeros((len(units), limit), np.int64)
        scale = _scale(units, _QUERY_LEVELS)
        levels = np.round(units / scale)
        error = np.linalg.norm(units - levels * scale, axis=1, keepdims=True)
        queries = (levels + _QUERY_ZERO).astype(np.uint8)
        for number, block in enumerate(self._blocks if limit else []):
            filled = min(_ROWS, len(self._keys) - number * _ROWS)
            if filled <= 0:
                break
            asked = {"queries": queries, "templates": block.high, "offset": block.offset, "scale": block.scale}
            doubt = error + block.error
            # the worst of the best so far; at first, of those that the scan takes for the best
            floor = best[:, -1:]
            if not number:
                (rough,) = self._scan.run(["scores"], asked | {"least": np.full_like(scale, np.inf)})
                nth = filled - min(limit, filled)
                top = np.argpartition(rough[:, :filled], nth, axis=1)[:, nth:]
                floor = block.exact(top.ravel(), units.repeat(top.shape[1], 0)).reshape(top.shape).min(1, keepdims=True)
            ((own, rows),) = self._scan.run(["found"], asked | {"least": ((floor - doubt) / scale).astype(np.float32)})
            own, rows = own[rows < filled], rows[rows < filled]
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
    """Up to `_ROWS` templates as high and low bytes, with a scale for each.

    High bytes lie value by value, as the products of a single query want them. `offset` is what the queries' zero adds
    to the products, `error` how far a score of the scan can be off for what the high bytes leave out.
    """

    def __init__(self, size: int) -> None:
        self.high = np.zeros((size, _ROWS), np.int8)
        self.low = np.zeros((_ROWS, size), np.int8)
        self.offset = np.zeros(_ROWS, np.int32)
        self.scale = np.zeros(_ROWS, np.float32)
        self.error = 0.0

    @property
    def nbytes(self) -> int:
        return self.high.nbytes + self.low.nbytes + self.offset.nbytes + self.scale.nbytes

    def write(self, row: int, units: Vectors) -> None:
        scale = _scale(units, _LEVELS)
        levels = units / scale
        high = np.round(levels)
        rows = slice(row, row + len(units))
        self.high[:, rows] = high.T
        self.low[rows] = np.round((levels - high) * _FINE).clip(-128, 127)
        self.offset[rows] = _QUERY_ZERO * high.sum(1)
        self.scale[rows] = scale[:, 0]
        self.error = max(self.error, float(np.linalg.norm(units - high * scale, axis=1).max()) + 1e-4)

    def copy_from(self, row: int, other: _Block, at: int) -> None:
        self.high[:, row], self.low[row] = other.high[:, at], other.low[at]
        self.offset[row], self.scale[row] = other.offset[at], other.scale[at]
        self.error = max(self.error, other.error)

    def clear(self, row: int) -> None:
        self.high[:, row] = self.low[row] = self.offset[row] = self.scale[row] = 0

    def exact(self, rows: _Places, units: Vectors) -> Vectors:
        """Scores (N,) of rows (N,) with as many queries (N,D), in full."""
        values = self.low[rows].astype(np.float32)
        values /= _FINE
        values += np.ascontiguousarray(self.high.take(rows, axis=1).T)
        values *= units
        return np.asarray(values.sum(1) * self.scale[rows])


def _scale(units: Vectors, levels: int) -> Vectors:
    """The scale (N,1) that brings the values of each row to at most `levels`."""
    return np.asarray(np.maximum(np.abs(units).max(1, keepdims=True), 1e-12) / levels, np.float32)


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
