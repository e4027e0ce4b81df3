"""Dynamic batching: payloads that wait while the network is busy are embedded together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from ppfr.methods import Payload
from ppfr.util.errors import ServiceError

Embeddings = npt.NDArray[np.float32]


class Batcher:
    """Calls `embed` from one thread, with all payloads that wait, up to `images` at a time.

    A payload never waits for others to come: one alone goes through at once.
    """

    def __init__(
        self,
        embed: Callable[[Payload], Embeddings],
        *,
        images: int = 32,
        waiting: int = 1024,
    ) -> None:
        self._embed = embed
        self._images = images
        self._queue: queue.Queue[tuple[Payload, Future[Embeddings]] | None] = queue.Queue(waiting)
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ppfr embed", daemon=True)
        self._thread.start()

    def embed(self, payload: Payload) -> Embeddings:
        """Embeddings (B, D); waits for its turn.

        Raises queue.Full when too many wait, ServiceError (503) after `close`, and what the network raises.
        """
        future: Future[Embeddings] = Future()
        # a payload queued behind the end mark would never be answered
        with self._gate:
            if self._closed:
                raise ServiceError("the server is closing and embeds no more payloads; ask again when it is back", 503)
            self._queue.put_nowait((payload, future))
        return future.result()

    def close(self) -> None:
        """Finish what waits, then end the thread; closing twice changes nothing."""
        with self._gate:
            closed, self._closed = self._closed, True
        if not closed:
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        ending = False
        while not ending:
            first = self._queue.get()
            if first is None:
                return
            batch, count = [first], len(first[0])
            while count < self._images:
                try:
                    further = self._queue.get_nowait()
                except queue.Empty:
                    break
                if further is None:
                    ending = True
                    break
                batch.append(further)
                count += len(further[0])
            self._answer(batch)

    def _answer(self, batch: list[tuple[Payload, Future[Embeddings]]]) -> None:
        try:
            embeddings = self._embed(Payload.concatenate(payload for payload, _ in batch))
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        start = 0
        for payload, future in batch:
            future.set_result(embeddings[start : start + len(payload)])
            start += len(payload)
