"""Bars: one display at a time, whoever asks, and nothing where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ppfr.util import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "console", console)
    return console


def test_a_bar_inside_another_joins_its_display_and_leaves_it(terminal: Console) -> None:
    with progress.bar() as outer:
        task = outer.add_task("outer", total=2, note="")
        with progress.progress_callback("inner") as update:
            update(1, 3)
            assert [one.description for one in outer.tasks] == ["outer", "inner"]
            assert outer.tasks[1].completed == 1
        assert outer.task_ids == [task]
    with progress.bar() as later:
        assert later is not outer


def test_a_bar_that_fails_makes_room_for_the_next(terminal: Console) -> None:
    with pytest.raises(ZeroDivisionError), progress.bar() as failed:
        _ = 1 / 0
    with progress.bar() as later:
        assert later is not failed
        assert not later.disable


def test_nothing_is_drawn_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=written, force_terminal=False))
    assert list(progress.track([1, 2], "counting")) == [1, 2]
    assert written.getvalue().strip() == ""
