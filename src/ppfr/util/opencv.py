"""Settings that OpenCV and PyTorch keep for the whole process, changed for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Silence OpenCV's warnings and errors on standard error, where an exception or a result says the same."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Make every call of OpenCV and PyTorch use one thread: the callers are parallel, and sums have one order."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
