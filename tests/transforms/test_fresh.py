"""Fresh generators: as random as the operating system, and still the Mersenne Twister that PyTorch means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppfr.transforms import fresh
from ppfr.transforms.fresh import fresh_generator


def test_seeds_of_torch_have_32_bits() -> None:
    """The reason for all this; when it fails, `Generator.seed` may do."""
    first, second = (torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7 + 2**32))
    assert torch.equal(first, second)


def test_every_word_of_the_state_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are those of NumPy's Mersenne Twister with the same 624 words, all of which came from the system."""
    key = np.random.default_rng(0).integers(0, 2**32, 624, np.uint32)
    monkeypatch.setattr(fresh.os, "urandom", lambda count: key.tobytes() if count == 4 * len(key) else b"")
    reference = np.random.MT19937()
    reference.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": len(key)}}
    found = torch.rand(2000, generator=fresh_generator())
    expected = (reference.random_raw(2000) & 0xFFFFFF) / 2**24
    assert np.array_equal(found.numpy(), expected.astype(np.float32))


def test_no_two_are_alike_and_all_are_even() -> None:
    draws = torch.stack([torch.rand(500, generator=fresh_generator()) for _ in range(40)])
    assert len(torch.unique(draws[:, 0])) == 40
    # 20,000 uniform draws: a mean this far off happens once in 10^9
    assert abs(float(draws.mean()) - 0.5) < 0.0125
    assert sorted(torch.randperm(192, generator=fresh_generator()).tolist()) == list(range(192))
