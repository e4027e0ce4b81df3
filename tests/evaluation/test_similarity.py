from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ppfr.evaluation.metrics.similarity import psnr, ssim
from ppfr.util.errors import ShapeError


def scene(seed: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Smooth colours with edges (3, 3, H, W) in [0, 1], more like a photo than noise is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-2, 2, size=(9, 3))]
    images = 0.5 + 0.3 * np.stack(waves).reshape(3, 3, height, width)
    images[:, :, : height // 2, : width // 3] = rng.random((3, 3, 1, 1))
    return torch.tensor(images.clip(0, 1), dtype=dtype)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    noise=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_agrees_with_skimage(seed: int, height: int, width: int, noise: float) -> None:
    reference = scene(seed, height, width)
    images = (reference + noise * torch.tensor(np.random.default_rng(seed).normal(size=reference.shape))).clamp(0, 1)
    for found, image, truth in zip(ssim(images, reference), images.numpy(), reference.numpy(), strict=True):
        expected = structural_similarity(
            image,
            truth,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        assert float(found) == pytest.approx(expected, abs=1e-10)
    if noise:
        for found, image, truth in zip(psnr(images, reference), images.numpy(), reference.numpy(), strict=True):
            assert float(found) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=1), abs=1e-9)


def test_float32_is_good_to_five_digits() -> None:
    # flat, bright images are the hard case: their variance is a difference of nearly equal squares
    flat = torch.full((1, 3, 112, 112), 0.97, dtype=torch.float64)
    reference = torch.cat([scene(0, 112, 112), flat])
    images = (reference + 0.004 * torch.tensor(np.random.default_rng(0).normal(size=reference.shape))).clamp(0, 1)
    exact = ssim(images, reference)
    rough = ssim(images.float(), reference.float())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=1e-5)


def test_equal_images() -> None:
    images = scene(1, 20, 20)
    assert psnr(images, images).tolist() == [math.inf] * 3
    torch.testing.assert_close(ssim(images, images), torch.ones(3, dtype=torch.float64))


def test_known_psnr() -> None:
    images = torch.zeros(2, 3, 8, 8)
    assert psnr(images + 0.1, images).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_images_of_a_batch_do_not_mix() -> None:
    one, other = scene(2, 16, 24), scene(3, 16, 24)
    together = ssim(one, other)
    apart = torch.cat([ssim(one[i : i + 1], other[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(ssim(other, one), together)


def test_ssim_can_be_a_loss() -> None:
    images, reference = scene(4, 16, 16).requires_grad_(), scene(5, 16, 16)
    ssim(images, reference).sum().backward()
    assert images.grad is not None
    better = (images + 0.01 * images.grad / images.grad.abs().max()).detach().clamp(0, 1)
    assert (ssim(better, reference) > ssim(images.detach(), reference)).all()


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (
            torch.zeros(2, 3, 16, 16),
            torch.zeros(1, 3, 16, 16),
            r"images \(2, 3, 16, 16\) and reference \(1, 3",
        ),
        (torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16), "H, W >= 11"),
        (
            torch.zeros(1, 3, 16, 16),
            -torch.ones(1, 3, 16, 16),
            r"reference range over \[-1, -1\]; expected \[0, 1\]",
        ),
        (torch.full((1, 3, 16, 16), torch.nan), torch.zeros(1, 3, 16, 16), "images range over"),
        (torch.zeros(1, 3, 16, 16).byte(), torch.zeros(1, 3, 16, 16), "images have dtype torch.uint8"),
    ],
)
def test_refusals(images: torch.Tensor, reference: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ssim(images, reference)
    if images.shape[2] > 10:
        with pytest.raises(ShapeError, match=message):
            psnr(images, reference)
