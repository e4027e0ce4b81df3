"""Index synchronisation: a search index that stays equal to the gallery, whichever server changes it."""

from __future__ import annotations

import logging
import threading

import numpy as np
from torch import Tensor

from ppfr.serving.contract import Candidate
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.index import Index, SearchUnavailable

_LOG = logging.getLogger(__name__)


class SynchronisedIndex:
    """Builds an index from a gallery, follows its changes (those of other servers, too), and names whom it finds.

    The index is derived data: `build` makes it from the database, `refresh` applies what has changed since, and after
    `start` a thread does so every `interval` seconds.
    """

    def __init__(self, gallery: Gallery, index: Index, *, interval: float = 0.5) -> None:
        self.index = index
        self.interval = interval
        self._gallery = gallery
        self._last = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.index)

    def build(self) -> int:
        """Make the index hold the enrolled templates and no others; returns how many.

        What an index outside this process holds already stays there: a face's template never changes.
        """
        with self._lock:
            self._last, batches = self._gallery.changes.snapshot()
            stale = self.index.keys()
            count = 0
            for faces, templates in batches:
                absent = [row for row, face in enumerate(faces) if face not in stale]
                if absent:
                    self.index.add([faces[row] for row in absent], templates[absent])
                stale.difference_update(faces)
                count += len(faces)
            self.index.remove(sorted(stale))
        # what another server enrolled meanwhile may have been taken for stale; it is among the changes
        self.refresh()
        return count

    def refresh(self) -> int:
        """Apply what has changed since; returns how many faces. Raises SearchUnavailable."""
        count = 0
        with self._lock:
            while changes := self._gallery.changes.after(self._last):
                for change in changes:
                    if change.template is None:
                        self.index.remove([change.face])
                    else:
                        self.index.add([change.face], change.template[None])
                self._last = changes[-1].number
                count += len(changes)
        return count

    def try_refresh(self) -> None:
        """As `refresh`; where an outside index is unavailable, the next refresh catches up."""
        try:
            self.refresh()
        except SearchUnavailable:
            _LOG.exception("the index is behind the gallery")

    def search(self, embedding: Tensor, limit: int) -> list[Candidate]:
        """The `limit` subjects most similar to a probe's embedding (D,), best first."""
        probe = self._gallery.protect(embedding[None])
        held = len(self)
        wanted = limit
        while True:
            matches = self.index.search(probe, wanted)[0]
            owners = self._gallery.faces.owners([match.key for match in matches])
            best: dict[str, float] = {}
            for match in matches:
                if match.key in owners:
                    best.setdefault(owners[match.key], match.score)
            if len(best) >= limit or wanted >= held:
                return [Candidate(*pair) for pair in list(best.items())[:limit]]
            # several templates of one subject are among the matches
            wanted = min(held, 4 * wanted)

    def recall(self, *, queries: int = 100, limit: int = 10) -> float:
        """The share of the `limit` nearest other templates that the index finds for templates of the gallery, in [0,1].

        Faces' ids are random, so the first ones are a random sample. The truth comes from one pass over the gallery in
        float32, a batch at a time. 1 for a gallery of at most one template.
        """
        _, batches = self._gallery.changes.snapshot()
        faces, templates = next(batches, ([], None))
        if templates is None:
            return 1.0
        asked, probes = faces[:queries], templates[:queries].numpy()
        nearest: list[list[tuple[float, str]]] = [[] for _ in asked]
        _, batches = self._gallery.changes.snapshot()
        for faces, templates in batches:
            scores = probes @ templates.numpy().T
            for row, own in enumerate(asked):
                best = np.argsort(-scores[row], kind="stable")[: limit + 1]
                found = [(float(scores[row, place]), faces[place]) for place in best if faces[place] != own]
                nearest[row] = sorted(nearest[row] + found, reverse=True)[:limit]
        hits = 0
        for true, matches in zip(nearest, self.index.search(probes, limit + 1), strict=True):
            hits += len({face for _, face in true} & {match.key for match in matches})
        wanted = sum(map(len, nearest))
        return hits / wanted if wanted else 1.0

    def start(self) -> None:
        """Follow the gallery until `stop`."""
        self._thread = threading.Thread(target=self._follow, name="ppfr index", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread of `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Stop following the gallery, and close the index."""
        self.stop()
        self.index.close()

    def _follow(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self.refresh()
            except Exception:
                # a database that does not answer for a moment must not end the thread
                _LOG.exception("the index could not follow the gallery; trying again in %s s", self.interval)
