"""A deployment small enough for tests, and the bytes that its client sends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ppfr.serving.http.assets import RUNTIME_VERSION, has_runtime, runtime_folder
from ppfr.serving.runtime.protector import Protector
from support.postgres import postgresql


@pytest.fixture(scope="session")
def send(deployment: Path) -> Callable[..., bytes]:
    """The message of random images, by number."""
    client = Protector(deployment / "client")

    def message(*numbers: int, draw: int = 0) -> bytes:
        images = [
            torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(number)) * 2 - 1 for number in numbers
        ]
        return client.to_bytes(torch.cat(images), torch.Generator().manual_seed(draw))

    return message


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The folder of onnxruntime-web; nothing is fetched in tests."""
    given = os.environ.get("PPFR_ORT_WEB")
    folder = Path(given) if given else runtime_folder()
    if not has_runtime(folder):
        pytest.skip(
            f"needs onnxruntime-web {RUNTIME_VERSION}: run `ppfr web-assets`, or set PPFR_ORT_WEB to its folder"
        )
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes databases of a PostgreSQL server and returns their addresses."""
    with postgresql() as database:
        yield database
