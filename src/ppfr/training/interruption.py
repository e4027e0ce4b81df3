"""SIGTERM and Ctrl-C as a request: finish the step, write a checkpoint, go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ppfr.util.errors import PpfrError

# what shells and schedulers see of a process that SIGTERM ended; the same after Ctrl-C
EXIT_STATUS = 128 + signal.SIGTERM


class Interrupted(PpfrError):
    """Training was asked to stop by SIGTERM or Ctrl-C and has written a checkpoint to continue from."""


@contextmanager
def termination_requested() -> Iterator[Callable[[], bool]]:
    """A block in which SIGTERM and Ctrl-C (SIGINT) end nothing; the callable tells whether one has come.

    Outside the main thread, where Python takes no signals, it never tells so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    # a shell's background jobs ignore Ctrl-C, which is meant for others
    wanted = [one for one in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, note) for one in wanted}
    try:
        yield lambda: bool(received)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
