"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# two test processes on two cores: threads of their own would only get in each other's way
torch.set_num_threads(1)

# a busy machine is no reason to fail
settings.register_profile("ppfr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ppfr")

ROOT = Path(__file__).resolve().parent.parent


def shared_path() -> Path | None:
    """The optional folder of real faces, weights and golden numbers, or None."""
    path = Path(os.environ.get("PPFR_SHARED", ROOT.parent / "shared"))
    return path if (path / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    path = shared_path()
    if path is None:
        pytest.skip("needs the shared folder (golden numbers, real faces): set PPFR_SHARED")
    return path


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        with np.load(shared / "golden" / name) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
