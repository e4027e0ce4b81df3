"""Time MinusFace's data path (DCT, generator, shuffle, decode) against one that enlarges to 896, in the same run.

    python benchmarks/minusface.py [--threads 2] [--rounds 5] [--widths 0.25 1]

Both use the same U-Net with the same weights. Straightforward ("plain") means: enlarge the image 8x and transform its
blocks; scale the channels, run the U-Net, scale back, subtract; shuffle; transform back to 896 and shrink. Huge pages
and glibc's settings are those of the command line, for both alike. Every round runs each contestant once, in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ppfr
from dct import ALL, straightforward, straightforward_inverse
from ppfr.methods.minusface import CHANNELS, ResidueClient
from ppfr.transforms.shuffle import draw_permutations
from ppfr.util.memory import tune_memory


def contestants(width: float, batch: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Ours and the straightforward path from the same images, weights and permutations to payloads."""
    method = ppfr.create("minusface", "mobilefacenet", generator_width=width)
    images = 2 * torch.rand(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 1
    client = method.client
    assert isinstance(client, ResidueClient)
    client.calibrate(images)

    def ours() -> Tensor:
        return method.protect(images, torch.Generator().manual_seed(1))["images"]

    def plain() -> Tensor:
        orders = draw_permutations(batch, CHANNELS, torch.Generator().manual_seed(1))
        coefficients = straightforward(images, ALL).flatten(1, 2)
        made = client.generator(client.scale(coefficients)) / client.scale.scale[:, None, None]
        residue = coefficients - made
        shuffled = torch.stack([image[order] for image, order in zip(residue, orders, strict=True)])
        return straightforward_inverse(shuffled.reshape(batch, 3, 64, *shuffled.shape[2:]))

    return ours, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 1.0])
    arguments = parser.parse_args()
    tune_memory()
    torch.set_num_threads(arguments.threads)
    print(f"float32, batch {arguments.batch}, {arguments.threads} threads, torch {torch.__version__}")
    if os.getloadavg()[0] > 0.5:
        print(f"other programs are running (load {os.getloadavg()[0]:.1f}): figures are unreliable")
    print(f"{'U-Net width':>12} {'plain ms':>10} {'ppfr ms':>10} {'ratio':>7}  largest difference")
    for width in arguments.widths:
        with torch.inference_mode():
            both = contestants(width, arguments.batch)
            difference = (both[0]() - both[1]()).abs().max()
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds):
                for run, kept in zip(both, times, strict=True):
                    start = time.perf_counter()
                    run()
                    kept.append(1e3 * (time.perf_counter() - start))
        ours, plain = (statistics.median(kept) for kept in times)
        print(f"{width:12g} {plain:10.1f} {ours:10.1f} {plain / ours:7.2f}  {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
