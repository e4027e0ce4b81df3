"""The block-DCT front end: recorded values, a slow obvious oracle, invariants and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor
from torch.nn.functional import interpolate

from ppfr.transforms import block_dct, frequency_matrix, inverse_block_dct, rgb_to_ycbcr, ycbcr_to_rgb
from ppfr.util.errors import ShapeError

SIZES = st.tuples(st.integers(8, 20), st.integers(8, 20))
SUBSETS = st.lists(st.integers(0, 63), min_size=1, max_size=64, unique=True)
quick = settings(max_examples=30, deadline=None)


def random_images(size: Sequence[int], seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, 3, *size, dtype=torch.float64, generator=generator) - 1


def random_coefficients(size: Sequence[int], seed: int, count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 100 * torch.randn(2, 3, count, *size, dtype=torch.float64, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Everything here is small: on a busy machine, threads that wait for each other would take the most time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The oracle: enlarge, convert, cut into blocks, and let SciPy take their DCT.


def oracle(images: Tensor, *, raw_range: bool = False) -> Tensor:
    large = interpolate(images if raw_range else (images + 1) / 2, scale_factor=8, mode="bilinear", align_corners=True)
    batch, _, height, width = images.shape
    blocks = (rgb_to_ycbcr(255 * large) - 128).reshape(batch, 3, height, 8, width, 8).numpy()
    spectrum = torch.from_numpy(dctn(blocks, axes=(3, 5), norm="ortho"))
    return spectrum.permute(0, 1, 3, 5, 2, 4).reshape(batch, 3, 64, height, width)


def inverse_oracle(coefficients: Tensor) -> Tensor:
    batch, _, _, height, width = coefficients.shape
    spectrum = coefficients.reshape(batch, 3, 8, 8, height, width).permute(0, 1, 4, 2, 5, 3).numpy()
    blocks = torch.from_numpy(idctn(spectrum, axes=(3, 5), norm="ortho"))
    large = ycbcr_to_rgb(blocks.reshape(batch, 3, 8 * height, 8 * width) + 128) / 255
    return interpolate(large, size=(height, width), mode="bilinear", align_corners=True)


@quick
@given(SIZES, st.booleans(), st.integers(0, 99))
def test_equals_enlarging_and_transforming_blocks(size: tuple[int, int], raw_range: bool, seed: int) -> None:
    images = random_images(size, seed)
    expected = oracle(images, raw_range=raw_range)
    torch.testing.assert_close(block_dct(images, raw_range=raw_range), expected, atol=1e-9, rtol=0)


@quick
@given(SIZES, st.integers(0, 99))
def test_inverse_equals_transforming_blocks_and_shrinking(size: tuple[int, int], seed: int) -> None:
    coefficients = random_coefficients(size, seed)
    expected = inverse_oracle(coefficients)
    torch.testing.assert_close(inverse_block_dct(coefficients, clamp=False), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(inverse_block_dct(coefficients), expected.clamp(0, 1), atol=1e-12, rtol=0)
    assert expected.min() < 0
    assert expected.max() > 1


def test_high_frequencies_keep_their_digits_in_float32() -> None:
    images = interpolate(random_images((7, 7), 0), (112, 112), mode="bicubic")
    exact, single = oracle(images), block_dct(images.float()).double()
    error = (single - exact).square().mean(dim=(0, 1, 3, 4)).sqrt()
    scale = exact.square().mean(dim=(0, 1, 3, 4)).sqrt()
    assert scale.max() / scale.min() > 1e6
    assert (error / scale).max() < 5e-3


@pytest.mark.parametrize("frequency", range(8))
def test_frequency_matrix_is_the_transform_of_an_enlarged_line(frequency: int) -> None:
    size = 13
    lines = interpolate(
        torch.eye(size, dtype=torch.float64)[:, None], scale_factor=8, mode="linear", align_corners=True
    )
    blocks = lines.reshape(size, size, 8).numpy()  # pixel that is one, block, sample
    expected = torch.from_numpy(dctn(blocks, axes=(2,), norm="ortho")[..., frequency].T.copy())
    matrix = frequency_matrix(size, frequency)
    torch.testing.assert_close(matrix, expected, atol=1e-14, rtol=0)
    assert matrix.triu(2).abs().max() == 0
    assert matrix.tril(-2).abs().max() == 0
    assert frequency_matrix(size, frequency, dtype=torch.float32).dtype == torch.float32


def test_channels_are_products_with_the_frequency_matrices() -> None:
    images = random_images((9, 14), 1)
    planes = rgb_to_ycbcr((images + 1) * 127.5) - 128
    channel = frequency_matrix(9, 3) @ planes @ frequency_matrix(14, 5).T
    torch.testing.assert_close(block_dct(images, [8 * 3 + 5])[:, :, 0], channel, atol=1e-10, rtol=0)


# Recorded values.


def norm(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1], the way the golden files state it."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def assert_golden(actual: np.ndarray, expected: np.ndarray, frequency: np.ndarray, atol: np.ndarray) -> None:
    """Tolerance K, and each frequency's rms difference below 5 % of its rms or 2e-5, whichever is more."""
    difference = np.abs(actual - expected)
    worst = (difference / atol[frequency]).argmax()
    assert (difference <= atol[frequency]).all(), (frequency.flat[worst], difference.flat[worst])
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
    images = norm(g["images"])
    dct = block_dct(images)
    back = inverse_block_dct(dct)
    np.testing.assert_allclose(at(back, g["ipos"]), g["idct"], atol=1e-4, rtol=0)
    assert (back - (images + 1) / 2).abs().max().item() == pytest.approx(0.0528, abs=1e-4)
    kept = [f for f in range(64) if f not in g["low"]]
    without_low = inverse_block_dct(dct[:, :, kept], kept)
    np.testing.assert_allclose(at(without_low, g["ipos"]), g["idct_without_low"], atol=1e-4, rtol=0)


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


def test_permuted_subset_of_each_image_matches_recorded_values(golden: Any) -> None:
    g = golden("partialface_subsets.npz")
    order = g["train_frequency_order"].astype(int)
    batch = torch.cat([block_dct(image[None], row) for image, row in zip(norm(g["images"]), order, strict=True)])
    frequency = order[g["train_pos"][:, 0], g["train_pos"][:, 1] % 9]
    assert_golden(at(batch.flatten(1, 2), g["train_pos"]), g["train_batch"], frequency, g["frequency_atol"])


def test_client_and_server_split_match_recorded_values(golden: Any) -> None:
    g = golden("duetface_split.npz")
    client = g["sub_channels"].astype(int)
    server = np.setdiff1d(np.arange(64), client)
    for name, frequencies in (("sub", client), ("main", server)):
        dct = block_dct(norm(g["images"]), frequencies).flatten(1, 2)
        frequency = frequencies[g[f"{name}_pos"][:, 1] % len(frequencies)]
        assert_golden(at(dct, g[f"{name}_pos"]), g[name], frequency, g["frequency_atol"])


# Invariants.


@quick
@given(SIZES, SUBSETS, st.booleans())
def test_a_subset_is_those_channels_of_the_whole(size: tuple[int, int], subset: list[int], raw_range: bool) -> None:
    images = random_images(size, len(subset))
    whole = block_dct(images, raw_range=raw_range)
    part = block_dct(images, subset, raw_range=raw_range)
    torch.testing.assert_close(part, whole[:, :, subset], atol=1e-10, rtol=0)


@quick
@given(SIZES, SUBSETS)
def test_absent_frequencies_count_as_zero(size: tuple[int, int], subset: list[int]) -> None:
    part = random_coefficients(size, 0, len(subset))
    whole = torch.zeros(2, 3, 64, *size, dtype=torch.float64)
    whole[:, :, subset] = part
    actual = inverse_block_dct(part, subset, clamp=False)
    torch.testing.assert_close(actual, inverse_block_dct(whole, clamp=False), atol=1e-12, rtol=0)


@quick
@given(SIZES, SUBSETS, st.floats(-2, 2))
def test_both_directions_are_affine(size: tuple[int, int], subset: list[int], weight: float) -> None:
    first, second = random_images(size, 1), random_images(size, 2)
    mixed = block_dct(weight * first + (1 - weight) * second, subset)
    expected = weight * block_dct(first, subset) + (1 - weight) * block_dct(second, subset)
    torch.testing.assert_close(mixed, expected, atol=1e-9, rtol=0)
    back = inverse_block_dct(expected, subset, clamp=False)
    expected_back = inverse_block_dct(mixed, subset, clamp=False)
    torch.testing.assert_close(back, expected_back, atol=1e-11, rtol=0)


@quick
@given(SIZES, SUBSETS)
def test_gradients_are_the_adjoints(size: tuple[int, int], subset: list[int]) -> None:
    images = random_images(size, 3).requires_grad_()
    coefficients = random_coefficients(size, 4, len(subset)).requires_grad_()
    directions = ((images, lambda x: block_dct(x, subset), coefficients.detach()),)
    directions += ((coefficients, lambda x: inverse_block_dct(x, subset, clamp=False), images.detach()),)
    for source, function, probe in directions:
        (gradient,) = torch.autograd.grad(function(source), source, probe)
        constant = function(torch.zeros_like(source))
        forward = ((function(source) - constant) * probe).sum()
        torch.testing.assert_close(forward, (source * gradient).sum(), atol=1e-6, rtol=1e-10)


@pytest.mark.parametrize("subset", [[0, 9, 3, 17, 40, 63], [27]])
def test_derivatives_pass_gradcheck(subset: list[int]) -> None:
    images = random_images((8, 9), 5, batch=1).requires_grad_()
    coefficients = random_coefficients((8, 9), 6, len(subset))[:1].requires_grad_()

    def back(x: Tensor) -> Tensor:
        return inverse_block_dct(x, subset, clamp=False)

    for function, source in ((lambda x: block_dct(x, subset), images), (back, coefficients)):
        assert torch.autograd.gradcheck(function, source, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).square(), source, fast_mode=True)


def test_clamped_pixels_pass_no_gradient() -> None:
    coefficients = random_coefficients((8, 8), 7).requires_grad_()
    image = inverse_block_dct(coefficients)
    (gradient,) = torch.autograd.grad(image[image >= 1].sum() + image[image <= 0].sum(), coefficients)
    assert gradient.abs().max() == 0


# Layouts, dtypes, modes and devices.


def test_groups_of_planes_do_not_show() -> None:
    images = random_images((112, 112), 8, batch=12).float()
    together, alone = block_dct(images, [0, 9, 18]), block_dct(images[-1:], [0, 9, 18])
    torch.testing.assert_close(together[-1:], alone)
    back = inverse_block_dct(together, [0, 9, 18])
    torch.testing.assert_close(back[-1:], inverse_block_dct(alone, [0, 9, 18]))


def test_any_memory_layout_gives_the_same_values() -> None:
    images = random_images((10, 12), 9)
    expected = block_dct(images)
    torch.testing.assert_close(block_dct(images.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(block_dct(images.repeat_interleave(2, 3)[..., ::2]), expected)
    transposed = expected.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(inverse_block_dct(transposed), inverse_block_dct(expected))


def test_result_flattens_to_the_networks_layout_without_a_copy() -> None:
    dct = block_dct(random_images((8, 8), 10), [5, 1, 9])
    flat = dct.flatten(1, 2)
    assert flat.data_ptr() == dct.data_ptr()
    assert torch.equal(flat[:, 3 * 1 + 2], dct[:, 1, 2])


def test_an_empty_batch_stays_empty() -> None:
    assert block_dct(torch.zeros(0, 3, 8, 9), [1, 2]).shape == (0, 3, 2, 8, 9)
    assert inverse_block_dct(torch.zeros(0, 3, 2, 8, 9), [1, 2]).shape == (0, 3, 8, 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    images = random_images((8, 9), 11).to(dtype).requires_grad_()
    dct = block_dct(images)
    assert dct.dtype == torch.float32
    torch.testing.assert_close(dct, block_dct(images.float()))
    assert inverse_block_dct(dct.to(dtype)).dtype == torch.float32
    dct.sum().backward()
    assert images.grad is not None
    assert images.grad.dtype == dtype


def test_reduced_precision_modes_change_nothing() -> None:
    images = random_images((16, 16), 12).float()
    expected = block_dct(images)
    expected_back = inverse_block_dct(expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dct = block_dct(images)
            assert torch.equal(dct, expected)
            assert torch.equal(inverse_block_dct(dct), expected_back)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_first_use_without_gradients_does_not_spoil_later_ones(mode: Callable[[], Any]) -> None:
    size = (21, 22) if mode is torch.no_grad else (22, 21)  # sizes that no other test has used before
    images = random_images(size, 13)
    with mode():
        inverse_block_dct(block_dct(images))
    images.requires_grad_()
    inverse_block_dct(block_dct(images), clamp=False).square().sum().backward()
    assert images.grad is not None


def test_export_neither_fails_nor_spoils_later_calls() -> None:
    class Client(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return inverse_block_dct(block_dct(images, [4, 11, 3]), [4, 11, 3])

    images = random_images((23, 24), 14)
    exported = torch.export.export(Client(), (images,)).module()
    torch.testing.assert_close(exported(images), Client()(images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_values_of_the_cpu() -> None:
    images = random_images((112, 112), 15).float()
    on_cpu, on_gpu = block_dct(images), block_dct(images.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(inverse_block_dct(on_gpu).cpu(), inverse_block_dct(on_cpu), atol=1e-5, rtol=0)


# Refusals.


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        ([], "empty; expected at least one of 0..63"),
        ([3, 64], r"\[64\] are out of range; expected 8 \* v \+ u in 0..63"),
        ([-1], r"\[-1\] are out of range"),
        ([5, 2, 5, 2, 1], r"\[2, 5\] occur more than once"),
        ([1.5], r"frequencies are \[1.5\]; expected a list of whole numbers"),
        (7, "frequencies are 7; expected a list of whole numbers"),
    ],
)
def test_bad_frequencies_are_refused(frequencies: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        block_dct(torch.zeros(1, 3, 16, 16), frequencies)
    with pytest.raises(ShapeError, match=message):
        inverse_block_dct(torch.zeros(1, 3, 2, 16, 16), frequencies)


@pytest.mark.parametrize("shape", [(), (3, 16, 16), (1, 1, 16, 16), (1, 3, 7, 16), (1, 3, 16, 7), (1, 16, 16, 3)])
def test_wrong_image_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"images have shape .*; expected \(B, 3, H, W\), H and W at least 8"):
        block_dct(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 64, 8, 8), (1, 3, 2, 7, 8), (3, 2, 8, 8), (1, 6, 8, 8), (1, 2, 3, 8, 8)])
def test_wrong_coefficient_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(B, 3, 2, H, W\) for 2 frequencies"):
        inverse_block_dct(torch.zeros(shape), [1, 2])


def test_integers_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"images have dtype torch.uint8"):
        block_dct(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"coefficients have dtype torch.int64"):
        inverse_block_dct(torch.zeros(1, 3, 64, 8, 8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("size", "frequency", "message"),
    [(7, 0, "size is 7"), (8, 8, "frequency is 8"), (8, -1, "frequency is -1")],
)
def test_impossible_frequency_matrices_are_refused(size: int, frequency: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        frequency_matrix(size, frequency)
