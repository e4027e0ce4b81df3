"""Approximate nearest-neighbour search in memory, for galleries too large for exact search."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ppfr.serving.search.index import Match, unit_queries, unit_templates

# its type stubs know neither the wrappers nor half of the classes
faiss: Any = importlib.import_module("faiss")

# neighbours of a template in the graph, and candidates while it is built
_NEIGHBOURS, _BUILDING = 32, 80
# share of removed templates at which the graph is rebuilt
_WASTE = 0.2


class ApproximateIndex:
    """Search in a graph of templates (HNSW: Malkov and Yashunin, TPAMI 2020; faiss), two bytes a value.

    `effort` is the number of candidates that a search follows (efSearch): recall and time grow with it. Removed
    templates stay in the graph, are never returned, and are dropped when they are a fifth of it. Safe for use from
    several threads.
    """

    def __init__(self, size: int, *, effort: int = 128) -> None:
        self.size, self.effort = size, effort
        self._lock = threading.RLock()
        self._clear()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[str], templates: npt.ArrayLike) -> None:
        """As `Index.add`."""
        units = unit_templates(keys, templates, self.size)
        with self._lock:
            self.remove(keys)
            for row, key in enumerate(keys):
                self._places[key] = len(self._keys) + row
            self._keys += list(keys)
            self._graph.add(units)

    def remove(self, keys: Sequence[str]) -> None:
        """As `Index.remove`."""
        with self._lock:
            for key in keys:
                place = self._places.pop(key, None)
                if place is not None:
                    self._keys[place] = None
            if len(self._keys) > 64 and len(self._places) < (1 - _WASTE) * len(self._keys):
                self._rebuild()

    def search(self, queries: npt.ArrayLike, limit: int) -> list[list[Match]]:
        """As `Index.search`, with most of the best matches, not always all."""
        units = unit_queries(queries, self.size, limit)
        with self._lock:
            if not self._places:
                return [[] for _ in units]
            live = np.array([key is not None for key in self._keys])
            chosen = faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))
            settings = faiss.SearchParametersHNSW(sel=chosen, efSearch=max(self.effort, limit))
            scores, places = self._graph.search(units, min(limit, len(self._places)), params=settings)
            return [
                [
                    Match(key, float(score))
                    for score, place in zip(*row, strict=True)
                    if (key := self._key(place)) is not None
                ]
                for row in zip(scores, places, strict=True)
            ]

    def keys(self) -> set[str]:
        """As `Index.keys`."""
        with self._lock:
            return set(self._places)

    def close(self) -> None:
        """Nothing is held outside this process."""

    def _key(self, place: int) -> str | None:
        return None if place < 0 else self._keys[place]

    def _clear(self) -> None:
        kind = faiss.ScalarQuantizer.QT_fp16
        self._graph = faiss.IndexHNSWSQ(self.size, kind, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = _BUILDING
        # a float16 quantiser learns nothing, but must be trained
        self._graph.train(np.zeros((1, self.size), np.float32))
        self._keys: list[str | None] = []
        self._places: dict[str, int] = {}

    def _rebuild(self) -> None:
        kept = sorted(self._places.items(), key=lambda pair: pair[1])
        rows = [self._graph.storage.reconstruct(place) for _, place in kept]
        self._clear()
        if rows:
            self._graph.add(np.stack(rows))
        self._keys = [key for key, _ in kept]
        self._places = {key: place for place, (key, _) in enumerate(kept)}
