"""The networks of the reference implementations: names, shapes, and values that need no random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.reference import Reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on two threads than on one, and far slower where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference(shared: Path) -> Reference:
    return Reference(shared / "golden")


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, str], Path]:
    """Write an object with torch.save into a fresh folder."""

    def save(content: Any, name: str = "weights.pth") -> Path:
        path = tmp_path_factory.mktemp("weights") / name
        torch.save(content, path)
        return path

    return save
