"""Rate limiting of callers."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """A token bucket for each caller: `rate` requests a second, `burst` at once, for the last 10,000 callers."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, caller: str) -> float:
        """Take a token; returns 0, or if there is none the seconds until there is."""
        now = self._clock()
        with self._lock:
            tokens, then = self._buckets.pop(caller, (float(self._burst), now))
            tokens = min(float(self._burst), tokens + (now - then) * self._rate)
            granted = tokens >= 1
            self._buckets[caller] = (tokens - granted, now)
            if len(self._buckets) > 10_000:
                self._buckets.popitem(last=False)
        return 0.0 if granted else (1 - tokens) / self._rate
