"""Search among templates in memory: exact inner products, two bytes a value."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppfr.util.errors import GalleryError

# rows of one block; results of a block and a batch of queries fit into the processor's cache
_ROWS = 16384
# queries that go through the blocks together
_QUERIES = 64
# pairs of a template and a query that are computed in full together
_PAIRS = 16384
_LEVELS = 127
# a value is (high + low / 256) times its row's scale
_FINE = 256


@dataclass(frozen=True)
class Match:
    """A template that was found, and its cosine to the query in [-1,1]."""

    key: str
    score: float


class Index(Protocol):
    """Templates by key, searched by cosine. Derived data: always to be rebuilt from the gallery."""

    def __len__(self) -> int:
        """How many templates there are."""

    def add(self, keys: Sequence[str], templates: Tensor) -> None:
        """Add or replace templates (N,D)."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove templates; keys that are not there are passed over."""

    def search(self, queries: Tensor, limit: int) -> list[list[Match]]:
        """The best `limit` matches of each query (Q,D), best first."""

    def keys(self) -> set[str]:
        """Keys of all templates."""

    def close(self) -> None:
        """Give back what is held outside this process."""


class SearchUnavailable(GalleryError):
    """An index outside this process that cannot be asked now; the gallery itself is whole."""


class ExactIndex:
    """Exact search by inner products of unit templates, all in memory.

    A value takes 16 bits, in two planes of 8. The high plane alone is scanned, as integers; how far that can be from
    the truth is known, so every row that might belong to the best is computed in full. Nothing is missed: the result
    is that of 16-bit templates searched one by one. Safe for use from several threads.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise GalleryError(f"an index of templates of length {size}; expected at least 1")
        self.size = size
        # integer products want whole vectors of the processor
        self._width = -(-size // 64) * 64
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

    @torch.no_grad()
    def add(self, keys: Sequence[str], templates: Tensor) -> None:
        """Add or replace templates (N,D), which need not be of unit length. Raises GalleryError, changing nothing."""
        units = self._units(templates, "templates")
        if len(keys) != len(units):
            raise GalleryError(f"{len(keys)} keys for {len(units)} templates; expected one each")
        if len(set(keys)) != len(keys):
            raise GalleryError("a key stands twice among the templates to add")
        with self._lock:
            known = [row for row, key in enumerate(keys) if key in self._places]
            for row in known:
                self._write([self._places[keys[row]]], units[row : row + 1])
            fresh = [row for row in range(len(keys)) if keys[row] not in self._places]
            places = list(range(len(self._keys), len(self._keys) + len(fresh)))
            self._write(places, units[fresh])
            for place, row in zip(places, fresh, strict=True):
                self._keys.append(keys[row])
                self._places[keys[row]] = place

    def remove(self, keys: Sequence[str]) -> None:
        """Remove templates; keys that are not there are passed over. The bytes of removed ones are overwritten."""
        with self._lock:
            for key in keys:
                place = self._places.pop(key, None)
                if place is None:
                    continue
                last = len(self._keys) - 1
                moved = self._keys.pop()
                if place != last:
                    # the last one takes the free place
                    self._block(place).copy_from(place % _ROWS, self._block(last), last % _ROWS)
                    self._keys[place] = moved
                    self._places[moved] = place
                self._block(last).clear(last % _ROWS)

    @torch.no_grad()
    def search(self, queries: Tensor, limit: int) -> list[list[Match]]:
        """The best `limit` matches of each query (Q,D), best first. Raises GalleryError."""
        if limit < 1:
            raise GalleryError(f"limit is {limit}; expected at least 1")
        units = self._units(queries, "queries")
        with self._lock:
            found: list[list[Match]] = []
            for part in torch.split(units, _QUERIES):
                found += self._search(part, min(limit, len(self._keys)))
            return found

    def keys(self) -> set[str]:
        """Keys of all templates."""
        with self._lock:
            return set(self._keys)

    def close(self) -> None:
        """Nothing is held outside this process."""

    # --- inside -------------------------------------------------------------------------------------------------
    def _units(self, vectors: Tensor, what: str) -> Tensor:
        values = vectors.detach().float().cpu()
        if values.ndim != 2 or values.shape[1] != self.size:
            raise GalleryError(f"{what} have shape {tuple(values.shape)}; expected (N, {self.size})")
        norms = values.norm(dim=1, keepdim=True)
        if not bool(torch.isfinite(values).all()) or bool((norms == 0).any()):
            raise GalleryError(
                f"{what} hold values that are not finite, or only zeros; a template must have a direction"
            )
        padded = torch.zeros(len(values), self._width)
        padded[:, : self.size] = values / norms
        return padded

    def _block(self, place: int) -> _Block:
        return self._blocks[place // _ROWS]

    def _write(self, places: Sequence[int], units: Tensor) -> None:
        done = 0
        while done < len(places):
            block, row = divmod(places[done], _ROWS)
            while block >= len(self._blocks):
                self._blocks.append(_Block(self._width))
            count = 1
            while done + count < len(places) and row + count < _ROWS and places[done + count] == places[done] + count:
                count += 1
            self._blocks[block].write(row, units[done : done + count])
            done += count

    def _search(self, units: Tensor, limit: int) -> list[list[Match]]:
        if not limit:
            return [[] for _ in units]
        asked = _Query(units)
        best = torch.full((len(units), limit), -torch.inf)
        places = torch.zeros(len(units), limit, dtype=torch.long)
        for number, block in enumerate(self._blocks):
            filled = min(_ROWS, len(self._keys) - number * _ROWS)
            if filled <= 0:
                break
            rough = block.rough(asked, filled)
            doubt = asked.error + block.error(filled)
            # the worst of the best so far; in the beginning, what the best rough scores are worth at least
            floor = best[:, -1] if number else rough.topk(min(limit, filled)).values[:, -1] - doubt
            queries, rows = (rough >= (floor - doubt)[:, None]).nonzero(as_tuple=True)
            # in parts: where all templates are alike, all are looked at
            for own, chosen in zip(torch.split(queries, _PAIRS), torch.split(rows, _PAIRS), strict=True):
                scores = block.exact(chosen, units[own])
                best, places = _merged(best, places, own, chosen + number * _ROWS, scores)
        return [
            [Match(self._keys[place], score) for score, place in zip(*row, strict=True) if score > -torch.inf]
            for row in zip(best.tolist(), places.tolist(), strict=True)
        ]


def _merged(best: Tensor, places: Tensor, queries: Tensor, found: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best scores and places (Q,K), best first, after more were found (N,) for queries (N,) in ascending order."""
    if not len(queries):
        return best, places
    counts = torch.bincount(queries, minlength=len(best))
    column = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
    more = best.new_full((len(best), int(counts.max())), -torch.inf)
    where = places.new_zeros(more.shape)
    more[queries, column], where[queries, column] = scores, found
    together, at = torch.cat([best, more], 1).topk(best.shape[1])
    return together, torch.cat([places, where], 1).gather(1, at)


class _Query:
    """Queries (Q,W) as integers, and how far an inner product with a unit vector can be off for that."""

    def __init__(self, units: Tensor) -> None:
        scale = units.abs().amax(1).clamp_min(1e-12) / _LEVELS
        levels = (units / scale[:, None]).round()
        self.levels = levels.to(torch.int8)
        self.scale = scale
        self.error = (units - levels * scale[:, None]).norm(dim=1)


class _Block:
    """Up to `_ROWS` templates in two planes of bytes, a scale for each, and how much the high plane leaves out."""

    def __init__(self, width: int) -> None:
        self.high = torch.zeros(_ROWS, width, dtype=torch.int8)
        self.low = torch.zeros(_ROWS, width, dtype=torch.int8)
        self.scale = torch.zeros(_ROWS)
        self.left = torch.zeros(_ROWS)

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.high, self.low, self.scale, self.left))

    def write(self, row: int, units: Tensor) -> None:
        scale = units.abs().amax(1).clamp_min(1e-12) / _LEVELS
        levels = units / scale[:, None]
        high = levels.round()
        low = ((levels - high) * _FINE).round().clamp(-128, 127)
        rows = slice(row, row + len(units))
        self.high[rows], self.low[rows], self.scale[rows] = high.to(torch.int8), low.to(torch.int8), scale
        self.left[rows] = (units - high * scale[:, None]).norm(dim=1) + 1e-4

    def copy_from(self, row: int, other: _Block, other_row: int) -> None:
        for name in ("high", "low", "scale", "left"):
            getattr(self, name)[row] = getattr(other, name)[other_row]

    def clear(self, row: int) -> None:
        for part in (self.high, self.low, self.scale, self.left):
            part[row] = 0

    def error(self, filled: int) -> float:
        """How far a rough score can be off for what the high plane leaves out."""
        return float(self.left[:filled].max()) + 2e-6

    def rough(self, query: _Query, filled: int) -> Tensor:
        """Scores (Q,filled) by the high plane alone."""
        # oneDNN's integer kernels; the operator's public name is still to come
        products = torch._int_mm(query.levels, self.high[:filled].T)
        return products.float().mul_(self.scale[:filled]).mul_(query.scale[:, None])

    def exact(self, rows: Tensor, units: Tensor) -> Tensor:
        """Scores (N,) of rows (N,) with as many queries (N,W), in full."""
        values = self.high[rows].float().add_(self.low[rows].float(), alpha=1 / _FINE)
        return values.mul_(units).sum(1) * self.scale[rows]


__all__ = ["ExactIndex", "Index", "Match", "SearchUnavailable"]
