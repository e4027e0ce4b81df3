"""How alike two images are pixel by pixel: PSNR and SSIM, one value an image."""

from __future__ import annotations

import torch
from torch import Tensor

from ppfr.util.errors import ShapeError

WINDOW = 11
SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_SLACK = 1e-3


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,) of images (B, C, H, W) in [0, 1]; infinite for equal images.

    Raises ShapeError for other shapes, ranges or types.
    """
    _check(images, reference, 1)
    error = (images - reference).square().flatten(1).mean(dim=1)
    return -10 * error.log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,), in [-1, 1], of images (B, C, H, W) in [0, 1].

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, averaged over the positions where the
    window fits (Wang et al., IEEE TIP 2004, section III). The paper compares grey images; as usual for
    colour, the channels' values are averaged. Raises ShapeError for other shapes, ranges or types, and
    below 11 pixels.
    """
    _check(images, reference, WINDOW)
    # variances are differences of near-equal squares: centring the values saves digits in float32
    x, y = images - 0.5, reference - 0.5
    rows = _window(x.shape[2], x)
    columns = _window(x.shape[3], x).T

    def smooth(planes: Tensor) -> Tensor:
        return rows @ planes @ columns

    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x + y * y) - mean_x.square() - mean_y.square()
    covariance = smooth(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    structure = (2 * covariance + _K2**2) / (variances + _K2**2)
    luminance = (2 * mean_x * mean_y + _K1**2) / (mean_x.square() + mean_y.square() + _K1**2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _window(size: int, like: Tensor) -> Tensor:
    """The (size - 10, size) matrix that takes a line of pixels to its Gaussian means."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=like.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    places = size - WINDOW + 1
    matrix = torch.zeros(places, size, dtype=torch.float64, device=like.device)
    index = torch.arange(places, device=like.device)[:, None] + torch.arange(WINDOW, device=like.device)
    matrix.scatter_(1, index, (weights / weights.sum()).expand(places, WINDOW))
    return matrix.to(like.dtype)


def _check(images: Tensor, reference: Tensor, smallest: int) -> None:
    if images.shape != reference.shape or images.ndim != 4 or min(images.shape[2:]) < smallest:
        raise ShapeError(
            f"images {tuple(images.shape)} and reference {tuple(reference.shape)}; expected one shape "
            f"(B, C, H, W) with H, W >= {smallest}"
        )
    for name, tensor in (("images", images), ("reference", reference)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ShapeError(f"{name} have dtype {tensor.dtype}; expected float32 or float64 values in [0, 1]")
        if not tensor.numel():
            continue
        low, high = (float(edge) for edge in torch.aminmax(tensor.detach()))
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise ShapeError(f"{name} range over [{low:.4g}, {high:.4g}]; expected [0, 1] (x / 2 + 0.5 of [-1, 1])")
