"""Obfuscators: the recorded values, slow oracles, and what every one of them keeps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from ppfr.transforms.blur import (
    EVALUATION,
    OBFUSCATORS,
    TRAINING,
    black_box,
    combine,
    downscale,
    gaussian_blur,
    hybrid_blur,
    median_blur,
    obfuscate,
    pixelate,
    tile_sources,
)
from ppfr.util.errors import ShapeError


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(batch: int = 2, side: int = 28, seed: int = 0) -> Tensor:
    """Images of 8-bit values."""
    return torch.randint(0, 256, (batch, 3, side, side), generator=drawn(seed)).float() / 127.5 - 1


# --- recorded values -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(golden: Callable[[str], Any]) -> Any:
    return golden("obfuscators.npz")


@pytest.fixture(scope="module")
def face(known: Any) -> Tensor:
    return torch.from_numpy(known["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1


def furthest(image: Tensor, known: Any, name: str) -> float:
    return float(np.abs(image.numpy()[tuple(known["ipos"].T)] - known[name]).max())


def test_single_obfuscators_give_the_recorded_values(known: Any, face: Tensor) -> None:
    assert furthest(gaussian_blur(face), known, "gaussian") < 1e-5
    assert furthest(median_blur(face), known, "median") < 1e-6
    assert furthest(pixelate(face, pick=True), known, "pixelate") < 1e-6
    requantised = ((face * 0.5 + 0.5) * 255).floor() / 127.5 - 1
    assert furthest(requantised, known, "requantised") < 2.001 / 255


def test_hybrid_tiles_give_the_recorded_values(known: Any, face: Tensor) -> None:
    sources = tile_sources(torch.from_numpy(known["hybrid16_order"].astype(np.int64)), (112, 112))[None]
    hybrid = combine(median_blur(face), gaussian_blur(face), pixelate(face, pick=True), sources)
    assert furthest(hybrid, known, "hybrid16") < 1e-5
    # the public code blurs an image that was enlarged to a multiple of three tiles, and shrinks the result
    large = interpolate(face, (114, 114), mode="bilinear", align_corners=False)
    sources = tile_sources(torch.from_numpy(known["hybrid9_order"].astype(np.int64)), (114, 114))[None]
    hybrid = combine(median_blur(large), gaussian_blur(large), pixelate(large, pick=True), sources)
    shrunk = interpolate(hybrid, (112, 112), mode="bilinear", align_corners=False)
    assert furthest(shrunk, known, "hybrid9") < 1e-5


# --- oracles -------------------------------------------------------------------------------------------------------


@given(kernel=st.sampled_from([1, 3, 7, 13]), seed=st.integers(0, 50))
def test_median_of_levels_and_of_floats_equal_scipys(kernel: int, seed: int) -> None:
    images = levels(1, 20, seed)
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, kernel, kernel), mode="constant", cval=0.0)
    assert np.allclose(median_blur(images, kernel).numpy(), expected, atol=1e-6)
    between = images * 0.987  # no 8-bit values: the general path
    expected = ndimage.median_filter(between.numpy(), size=(1, 1, kernel, kernel), mode="constant", cval=0.0)
    assert np.allclose(median_blur(between, kernel).numpy(), expected, atol=1e-6)


@given(sigma=st.floats(0.5, 8), seed=st.integers(0, 50))
def test_gaussian_equals_scipys(sigma: float, seed: int) -> None:
    images = levels(1, 40, seed)
    expected = ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, 15, 15)
    )
    assert np.allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-4)


@given(block=st.integers(1, 28), seed=st.integers(0, 50))
def test_pixelated_blocks_show_their_mean(block: int, seed: int) -> None:
    images = levels(1, 28, seed)
    shown = pixelate(images, block)
    cells = 28 // block
    edges = [-(-cell * 28 // cells) for cell in range(cells + 1)]
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            mean = images[:, :, top:bottom, left:right].mean((2, 3), keepdim=True)
            assert torch.allclose(
                shown[:, :, top:bottom, left:right], mean.expand(-1, -1, bottom - top, right - left), atol=1e-5
            )


def test_each_image_has_a_strength_of_its_own() -> None:
    images = levels(3)
    for blur, strengths in ((gaussian_blur, (2.0, 5.0, 8.0)), (median_blur, (3, 7, 13)), (pixelate, (2, 5, 7))):
        together = blur(images, torch.tensor(strengths))
        for index, strength in enumerate(strengths):
            assert torch.allclose(together[index], blur(images[index : index + 1], strength)[0], atol=1e-5)


# --- what every obfuscator keeps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", OBFUSCATORS)
def test_obfuscators_keep_shape_range_and_repeat_with_the_generator(how: str) -> None:
    images = levels(3, 112)
    first = obfuscate(images, how, drawn(1), TRAINING)
    assert first.shape == images.shape
    assert first.abs().max() <= 1 + 1e-5
    assert torch.equal(first, obfuscate(images, how, drawn(1), TRAINING))
    assert not torch.allclose(first, images, atol=0.1)
    assert obfuscate(images[:0], how, drawn(1), TRAINING).shape == (0, 3, 112, 112)


@pytest.mark.parametrize("how", OBFUSCATORS)
def test_gradients_reach_the_images(how: str) -> None:
    images = (levels(1, 32) * 0.9).requires_grad_()
    obfuscate(images, how, drawn(2), EVALUATION).square().sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["gaussian", "median", "pixelate", "hybrid", "downscale"])
def test_a_plain_image_stays_plain(how: str) -> None:
    plain = torch.full((1, 3, 112, 112), 1 / 127.5)
    shown = obfuscate(plain, how, drawn(), EVALUATION)
    inside = shown[:, :, 10:-10, 10:-10]  # the median sees mid-grey outside
    assert torch.allclose(inside, plain[:, :, 10:-10, 10:-10], atol=1e-5)


@given(side=st.integers(1, 6), seed=st.integers(0, 50))
def test_a_third_of_the_tiles_comes_from_each_source(side: int, seed: int) -> None:
    order = torch.rand(side * side, generator=drawn(seed)).argsort()
    sources = tile_sources(order, (60, 60))
    counted = torch.bincount(sources.flatten(), minlength=3) * side * side / 3600
    assert counted.tolist() == [side * side // 3, side * side // 3, side * side - 2 * (side * side // 3)]


def test_hybrid_images_differ_in_their_tiles() -> None:
    images = levels(1, 112).repeat(4, 1, 1, 1)
    hybrids = hybrid_blur(images, drawn())
    assert len({hybrid.numpy().tobytes() for hybrid in hybrids}) == 4


def test_the_black_box_covers_the_eyes_only() -> None:
    shown = black_box(levels(1, 112) * 0.5)
    black = (shown == -1).all(1)[0]
    assert black[50, 40]
    assert not black[100, 56]
    assert 0.1 < black.float().mean() < 0.2


def test_wrong_settings_are_named() -> None:
    images = levels()
    with pytest.raises(ShapeError, match=r"kernel is 4; expected odd"):
        gaussian_blur(images, 5.0, kernel=4)
    with pytest.raises(ShapeError, match=r"sigma is 0; expected above 0 pixels"):
        gaussian_blur(images, 0.0, kernel=5)
    with pytest.raises(ShapeError, match=r"kernel is \[4, 4\]; expected odd"):
        median_blur(images, 4)
    with pytest.raises(ShapeError, match=r"block is \[29, 29\]; expected 1\.\.28 pixels"):
        pixelate(images, 29)
    with pytest.raises(ShapeError, match=r"factor is \[0, 0\]"):
        downscale(images, 0)
    with pytest.raises(ShapeError, match=r"box is \(0\.5, 0, 0\.5, 1\)"):
        black_box(images, (0.5, 0, 0.5, 1))
    with pytest.raises(ShapeError, match=r"no obfuscator 'mosaic'; expected one of gaussian"):
        obfuscate(images, "mosaic", drawn())
    with pytest.raises(ShapeError, match=r"expected one number, or one for each image"):
        pixelate(images, torch.tensor([2, 2, 2]))
    with pytest.raises(ShapeError, match=r"5 tiles are ordered; expected n \* n"):
        tile_sources(torch.arange(5), (10, 10))
    with pytest.raises(ShapeError, match=r"expected floats \(B, 3, H, W\)"):
        gaussian_blur(images.byte())
