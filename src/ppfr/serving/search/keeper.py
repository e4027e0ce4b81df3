"""Keeps an index equal to the gallery, whoever changes it."""

from __future__ import annotations

import logging
import threading

from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.index import Index

_LOG = logging.getLogger(__name__)


class IndexKeeper:
    """Builds an index from a gallery and follows its changes, those of other servers, too.

    The index is derived data: `build` makes it anew from the database. `refresh` applies what has changed since; in
    between, `start` does so every `interval` seconds in a thread of its own.
    """

    def __init__(self, gallery: Gallery, index: Index, *, interval: float = 0.5) -> None:
        self.index = index
        self.interval = interval
        self._gallery = gallery
        self._last = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def build(self) -> int:
        """Make the index hold the enrolled templates and no others; returns how many.

        What an index outside this process holds already stays there: a face's template never changes.
        """
        with self._lock:
            self._last, batches = self._gallery.snapshot()
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
        """Apply what has changed since; returns how many faces."""
        count = 0
        with self._lock:
            while changes := self._gallery.changes(self._last):
                for change in changes:
                    if change.template is None:
                        self.index.remove([change.face])
                    else:
                        self.index.add([change.face], change.template[None])
                self._last = max(change.number for change in changes)
                count += len(changes)
        return count

    def start(self) -> None:
        """Follow the gallery until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._follow, name="ppfr index keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread of `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _follow(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self.refresh()
            except Exception:
                # a database that is away for a moment must not end the following
                _LOG.exception("the index could not follow the gallery; trying again in %s s", self.interval)


__all__ = ["IndexKeeper"]
