"""A small client to audit, and images for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from support.toys import ToyMethod, smooth_images


@pytest.fixture
def toy() -> Callable[..., ToyMethod]:
    return lambda *clients: ToyMethod(clients)


@pytest.fixture
def images() -> Tensor:
    return smooth_images(6, 1)
