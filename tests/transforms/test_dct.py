"""The block-DCT front end: recorded values, a slow obvious oracle, invariants and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppfr.transforms import block_dct, inverse_block_dct


def norm(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1], the way the golden files state it."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def assert_golden(actual: np.ndarray, expected: np.ndarray, frequency: np.ndarray, atol: np.ndarray) -> None:
    """Tolerance K, and for each frequency an rms difference below 5 % of its rms or 2e-5, whichever is larger."""
    difference = np.abs(actual - expected)
    worst = (difference / atol[frequency]).argmax()
    assert (difference <= atol[frequency]).all(), (frequency[worst], difference[worst])
    for f in np.unique(frequency):
        mine = frequency == f
        rms = np.sqrt(np.mean(difference[mine] ** 2.0))
        assert rms <= max(0.05 * np.sqrt(np.mean(expected[mine] ** 2.0)), 2e-5), (f, rms)


def at(values: Tensor, positions: np.ndarray) -> np.ndarray:
    return values.numpy()[tuple(positions.astype(int).T)]


def test_coefficients_match_recorded_values(golden: Any) -> None:
    g = golden("bdct112.npz")
    dct = block_dct(norm(g["images"])).flatten(1, 2)
    assert_golden(at(dct, g["pos"]), g["dct"], g["pos"][:, 1] % 64, g["frequency_atol"])
    for (image, channel), whole in zip(g["whole_index"], g["whole"], strict=True):
        frequency = np.full(whole.shape, channel % 64)
        assert_golden(dct[image, channel].numpy(), whole, frequency, g["frequency_atol"])


def test_inverse_matches_recorded_values(golden: Any) -> None:
    g = golden("bdct112.npz")
    dct = block_dct(norm(g["images"]))
    np.testing.assert_allclose(at(inverse_block_dct(dct), g["ipos"]), g["idct"], atol=1e-4, rtol=0)
    kept = [f for f in range(64) if f not in g["low"]]
    image = inverse_block_dct(dct[:, :, kept], kept)
    np.testing.assert_allclose(at(image, g["ipos"]), g["idct_without_low"], atol=1e-4, rtol=0)


def test_raw_range_and_unclamped_inverse_match_recorded_values(golden: Any) -> None:
    g = golden("bdct128_hfr.npz")
    frequencies = range(1, 64)
    dct = block_dct(norm(g["images"]), frequencies, raw_range=True)
    frequency = g["pos"][:, 1] % 63 + 1
    assert_golden(at(dct.flatten(1, 2), g["pos"]), g["dct"], frequency, g["frequency_atol"])
    image = inverse_block_dct(dct, frequencies, clamp=False)
    np.testing.assert_allclose(at(image, g["ipos"]), g["server_image"], atol=1e-4, rtol=0)


def test_subsets_match_recorded_values(golden: Any) -> None:
    g = golden("partialface_subsets.npz")
    images, table = norm(g["images"]), g["frequency_table"].astype(int)
    subsets = torch.cat([block_dct(images, row).flatten(1, 2) for row in table])
    frequency = table[g["pos"][:, 0] // len(images), g["pos"][:, 1] % 9]
    assert_golden(at(subsets, g["pos"]), g["subsets"], frequency, g["frequency_atol"])


def test_client_and_server_split_match_recorded_values(golden: Any) -> None:
    g = golden("duetface_split.npz")
    client = g["sub_channels"].astype(int)
    server = np.setdiff1d(np.arange(64), client)
    for name, frequencies in (("sub", client), ("main", server)):
        dct = block_dct(norm(g["images"]), frequencies).flatten(1, 2)
        frequency = frequencies[g[f"{name}_pos"][:, 1] % len(frequencies)]
        assert_golden(at(dct, g[f"{name}_pos"]), g[name], frequency, g["frequency_atol"])


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        ([], "empty"),
        ([3, 64], r"\[64\] are out of range"),
        ([-1], "out of range"),
        ([5, 2, 5], r"\[5\] occur more"),
    ],
)
def test_bad_frequencies_are_refused(frequencies: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_dct(torch.zeros(1, 3, 16, 16), frequencies)
