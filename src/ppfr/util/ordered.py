"""Work by many threads whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

_Item = TypeVar("_Item")
_Tool = TypeVar("_Tool")
_Result = TypeVar("_Result")

# results that wait for a slower one before them, for each thread
_AHEAD = 4


def in_order(
    task: Callable[[_Tool, _Item], _Result], items: Iterable[_Item], tools: list[_Tool]
) -> Iterator[tuple[_Item, _Result]]:
    """Yield every item with its result, in the order of `items`, with a thread for each tool, which it uses alone."""
    free: SimpleQueue[_Tool] = SimpleQueue()
    for tool in tools:
        free.put(tool)

    def attempt(item: _Item) -> _Result:
        tool = free.get()
        try:
            return task(tool, item)
        finally:
            free.put(tool)

    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(len(tools)) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(attempt, item)))
                if len(waiting) > _AHEAD * len(tools):
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            for _, result in waiting:
                result.cancel()
