"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
_Item = TypeVar("_Item")


_showing: Progress | None = None


@contextmanager
def bar() -> Iterator[Progress]:
    """A progress display on standard error that draws nothing unless that is a terminal.

    Inside the block of another one, tasks join that one's display and leave it again at the end: a terminal has room
    for one.
    """
    global _showing
    if _showing is not None:
        before = set(_showing.task_ids)
        try:
            yield _showing
        finally:
            for task in set(_showing.task_ids) - before:
                _showing.remove_task(task)
        return
    with _display() as progress:
        _showing = progress
        try:
            yield progress
        finally:
            _showing = None


def _display() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def track(items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
    """Yield `items` with a bar; `total` is needed only where `items` has no length."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)


@contextmanager
def progress_callback(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar fed by calls of the form `progress(done, total)`, as evaluation and attacks make them."""
    with bar() as progress:
        task = progress.add_task(description, total=None, note="")

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update
