"""`ppfr ...` as a user types it, within the test's process, and the small settings that make training cheap."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from ppfr.cli import main

TINY = "synthetic:people=14,images=4"
FAST = [
    "--profile",
    "quick",
    *("--set", "training.epochs=1", "--set", "backbone.width=0.125", "--set", "backbone.embedding_size=16"),
    *("--set", "training.batch_size=8", "--set", "warm_start_images=36"),
]


def ppfr_command(*arguments: object) -> int:
    """Run `ppfr ARGUMENTS` in this process; returns the exit status. What it sets in the environment ends with it."""
    with mock.patch.object(sys, "argv", ["ppfr", *map(str, arguments)]), mock.patch.dict(os.environ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def photo(path: Path, seed: int = 0, size: int = 112) -> Path:
    """Write a picture of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 4))
    return path
