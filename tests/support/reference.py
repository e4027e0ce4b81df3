"""What the golden files say of the reference implementations' networks, and the rule that fills them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PERIOD = 1000003


class Reference:
    """What golden/backbones.json and .npz say of the peers' networks."""

    def __init__(self, folder: Path) -> None:
        self.networks: dict[str, Any] = json.loads((folder / "backbones.json").read_text())
        with np.load(folder / "backbones.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def shapes(self, network: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(key, tuple(shape)) for key, shape in self.networks[network]["state_dict"]]

    def state(self, network: str) -> dict[str, Tensor]:
        """The state_dict that the peer was filled with, under the peer's names."""
        gain = self.networks[network].get("gain", 1.0)
        state = {key: rule_values(key, shape, gain) for key, shape in self.shapes(network)}
        for key, values in self.networks[network].get("fill_check", {}).items():
            torch.testing.assert_close(state[key].flatten()[:4], torch.tensor(values), rtol=1e-6, atol=0)
        return state

    def image(self, name: str) -> Tensor:
        """A recorded uint8 image as the networks take it: (1, 3, H, W) in [-1, 1]."""
        return (self.arrays[name].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

    def check(self, array: str, values: Tensor) -> None:
        """The recorded tolerance: the largest difference is at most 1e-4 of the largest value."""
        expected = self.arrays[array]
        assert (values.reshape(expected.shape) - expected).abs().max() <= 1e-4 * expected.abs().max()


def rule_values(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """Fill an entry by the value rule of the golden files."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    values = rule(key, int(np.prod(shape))).reshape(shape)
    if key.endswith("running_mean"):
        values = 0.01 * values
    elif key.endswith("running_var"):
        values = 1 + 0.1 * values
    elif len(shape) >= 2:
        values = gain * np.sqrt(3 / np.prod(shape[1:])) * values
    elif len(shape) == 1 and key.endswith("weight"):
        values = 0.7 + 0.2 * values
    else:
        values = 0.05 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def rule(name: str, count: int) -> np.ndarray[Any, Any]:
    c = sum((k + 1) * ord(letter) for k, letter in enumerate(name)) % PERIOD
    j = np.arange(min(count, PERIOD), dtype=np.int64)  # the rule repeats after PERIOD values
    u = (7919 * (j * j % PERIOD) + 104729 * j + 131 * c) % PERIOD
    return np.resize(2 * u / PERIOD - 1, count)
