"""Time the block-DCT front end against a straightforward implementation in the same run.

    python benchmarks/dct.py [--threads 2] [--rounds 11] [--size 112]

Straightforward ("plain") means: enlarge the image 8x, convert its colours, cut it into blocks, multiply each by
the wanted rows of the 64x64 DCT basis; and the same backwards. Every round runs each contestant once, in turn,
and medians are compared, so that a machine that is slower for a while is slower for all. The bound is the time
of merely writing the output (`torch.full`), or, where the output is an image, of merely reading the coefficients
(`sum`). Peak memory is what a fresh process needs beyond its input (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor
from torch.nn.functional import fold, interpolate, unfold

from ppfr.transforms import block_dct, inverse_block_dct, rgb_to_ycbcr, ycbcr_to_rgb

NINE = (21, 4, 58, 35, 12, 30, 43, 7, 49)  # as many as a PartialFace payload has, in no order
ALL = tuple(range(64))


def basis() -> Tensor:
    """The (64, 64) DCT of an 8x8 block: row 8 * v + u is the wave of that frequency."""
    wave = dct(np.eye(8), axis=0, norm="ortho")
    return torch.from_numpy(np.kron(wave, wave)).float()


def straightforward(images: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    batch, _, height, width = images.shape
    large = interpolate((images + 1) * 127.5, scale_factor=8, mode="bilinear", align_corners=True)
    planes = (rgb_to_ycbcr(large) - 128).view(3 * batch, 1, 8 * height, 8 * width)
    blocks = unfold(planes, kernel_size=8, stride=8)
    return (basis()[list(frequencies)] @ blocks).view(batch, 3, len(frequencies), height, width)


def straightforward_inverse(coefficients: Tensor) -> Tensor:
    batch, _, _, height, width = coefficients.shape
    blocks = basis().T @ coefficients.reshape(3 * batch, 64, height * width)
    planes = fold(blocks, (8 * height, 8 * width), kernel_size=8, stride=8)
    large = ycbcr_to_rgb(planes.view(batch, 3, 8 * height, 8 * width) + 128) / 255
    return interpolate(large, size=(height, width), mode="bilinear", align_corners=True).clamp(0, 1)


def gradient(function: Callable[[Tensor], Tensor], images: Tensor, probe: Tensor) -> Tensor:
    leaf = images.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, probe)[0]


class Case(NamedTuple):
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    bound: Callable[[], Tensor]


def make_cases(batch: int, size: int) -> dict[str, Case]:
    """The contestants by name, each with its input already in memory."""
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(batch, 3, size, size, generator=generator) - 1
    coefficients = torch.empty(batch, 3, 64, size, size).normal_(0, 20, generator=generator)

    def analysis(frequencies: tuple[int, ...]) -> Case:
        return Case(
            lambda: block_dct(images, frequencies),
            lambda: straightforward(images, frequencies),
            lambda: torch.full((batch, 3, len(frequencies), size, size), 1.0),
        )

    return {
        "all 64 frequencies": analysis(ALL),
        "9 frequencies": analysis(NINE),
        "inverse": Case(
            lambda: inverse_block_dct(coefficients),
            lambda: straightforward_inverse(coefficients),
            lambda: coefficients.sum(),
        ),
        "all 64, with gradient": Case(
            lambda: gradient(block_dct, images, coefficients),
            lambda: gradient(lambda x: straightforward(x, ALL), images, coefficients),
            lambda: coefficients.sum(),
        ),
    }


def medians(case: Case, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of ours, theirs and the bound, each run once per round after a warm-up."""
    times: tuple[list[float], ...] = ([], [], [])
    for turn in range(rounds + 1):
        for function, kept in zip(case, times, strict=True):
            start = time.perf_counter()
            result = function()
            elapsed = time.perf_counter() - start
            del result  # not part of the time: whoever uses it next pays for it
            if turn:
                kept.append(1e3 * elapsed)
    ours, theirs, bound = (statistics.median(kept) for kept in times)
    return ours, theirs, bound


def peak_bytes(name: str, batch: int, size: int, field: str, threads: int) -> int:
    """How far the resident memory of this process rises above its start while a contestant runs once."""
    torch.set_num_threads(threads)
    contestant = getattr(make_cases(batch, size)[name], field)
    getattr(make_cases(1, size)[name], field)()  # starts the threads and loads the kernels, which do not count
    ctypes.CDLL(None).malloc_trim(0)  # and gives back what that left, so that it is counted when used again
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    contestant()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of_a_fresh_process(*arguments: object) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_bytes, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.size
    print(f"float32, {size}x{size}, {arguments.threads} threads, torch {torch.__version__}")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"other programs are running (load {load:.1f}): figures are unreliable")
    print("times in ms, peak memory in MB and for ppfr as a multiple of the output\n")
    print(f"{'':27} {'time':>17} {'':6} {'bound':>17} {'memory':>28}")
    print(f"{'batch':>5} {'':21} {'plain':>8} {'ppfr':>8} {'ratio':>6}", end="")
    print(f" {'':>8} {'ppfr/it':>8} {'plain':>8} {'ppfr':>8} {'multiple':>10}  largest relative difference")
    for batch in arguments.batches:
        for name, case in make_cases(batch, size).items():
            result, expected = case.ours(), case.theirs()
            difference = ((result - expected).abs().max() / expected.abs().max()).item()
            output = result.nbytes
            del result, expected
            ours, theirs, bound = medians(case, arguments.rounds)
            row = f"{batch:5} {name:21} {theirs:8.2f} {ours:8.2f} {theirs / ours:6.1f}"
            row += f" {bound:8.2f} {ours / bound:8.2f}"
            if sys.platform == "linux":
                plain_peak, peak = (
                    peak_of_a_fresh_process(name, batch, size, field, arguments.threads) for field in ("theirs", "ours")
                )
                row += f" {plain_peak / 1e6:8.1f} {peak / 1e6:8.1f} {peak / output:10.2f}"
            else:
                row += f" {'-':>8} {'-':>8} {'-':>10}"
            print(f"{row}  {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
