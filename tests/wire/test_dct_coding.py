"""The DCT coding of block-DCT channels: the frequencies are found, the channels come back, nothing else is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppfr.transforms import block_dct
from ppfr.util.errors import PayloadError
from ppfr.wire.codings import DctCoding
from ppfr.wire.dct_coding import decode_channels, encode_channels, find_frequencies

SIZE = (24, 32)


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand((1, 3, *SIZE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def channels(frequencies: list[int] | None = None, seed: int = 0) -> np.ndarray:
    return block_dct(images(seed), frequencies)[0].double().numpy()


def test_all_64_frequencies_are_told_apart() -> None:
    assert find_frequencies(channels()).tolist() == list(range(64))
    order = np.random.default_rng(0).permutation(64).tolist()
    assert find_frequencies(channels(order)).tolist() == order


@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
def test_channels_come_back_with_the_error_asked_for(error: float) -> None:
    sent = channels([5, 34, 38, 21, 42, 55, 57, 50, 62])
    back = decode_channels(encode_channels(sent, error))
    relative = np.sqrt(np.mean((sent - back) ** 2, axis=(2, 3)) / np.mean(sent**2, axis=(2, 3)))
    assert 0.5 * error < np.sqrt(np.mean(relative**2)) < 1.5 * error


def test_what_the_channels_do_not_hold_is_not_sent() -> None:
    frequencies = [9, 18, 27, 45, 54]
    dark, bright = images() * 0.5 - 0.3, images() * 0.5 + 0.3
    coded = [encode_channels(block_dct(each, frequencies)[0].double().numpy(), 0.05) for each in (dark, bright)]
    # with neither u nor v zero, brightness is in no channel
    assert np.array_equal(coded[0].levels, coded[1].levels)


def test_an_empty_channel_or_colour_is_no_trouble() -> None:
    sent = channels([5, 12, 19])
    sent[1] = 0
    np.testing.assert_array_equal(decode_channels(encode_channels(sent, 0.05))[1], 0)
    np.testing.assert_array_equal(decode_channels(encode_channels(np.zeros_like(sent), 0.05)), 0)


def test_channels_of_no_block_dct_are_refused() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 4, *SIZE))
    with pytest.raises(PayloadError, match="not the block DCT of three colour planes"):
        encode_channels(noise, 0.02)


def test_a_finer_error_than_16_bits_hold_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"expected 0\.005 \.\. 0\.5"):
        DctCoding(1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("black", [slice(None, 3), slice(-3, None)])
def test_an_image_with_a_black_edge_is_read_rightly(seed: int, black: slice) -> None:
    """Edges that are flat both ways show no frequency; 1 of 1,170 photographs of faces had one."""
    face = images(seed)
    face[..., black] = -1
    frequencies = [16, 5, 34, 38, 21, 42, 55, 56, 50, 62]
    sent = block_dct(face, frequencies)[0].double().numpy()
    coded = encode_channels(sent, 0.02)
    assert coded.frequencies.tolist() == frequencies
    assert np.sqrt(np.sum((decode_channels(coded) - sent) ** 2) / np.sum(sent**2)) < 0.05
