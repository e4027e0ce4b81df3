"""Time an iteration of the pattern optimiser (PrivacyHFR's DRA step) against straightforward loops in the same run.

    python benchmarks/dra.py [--backbone lightcnn-29v4] [--batch 2] [--rounds 5]

Straightforward ("plain") means: the recogniser as it was trained, zero channels around the pattern, the target
embedding left in its graph, so that `backward(retain_graph=True)` also runs through the target and into all weights;
gradient, momentum and pattern in NumPy, copied there and back at every step. "Detached" is the same with the target
detached, which is the least that a careful reader of that code would change. All contestants share one network and
start from the same noise. Every round runs each of them once, in turn, and medians are compared: of processor time on
one thread, for which other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.methods.common.patterns import EmbeddingMatch, UpdateRule, find_patterns
from ppfr.networks import Backbone, build_backbone
from ppfr.networks.inference import folded, reading_channel
from ppfr.transforms import remove_frequencies

STEP, MOMENTUM = UpdateRule().step, UpdateRule().momentum
CHECKED = 5


def straightforward(network: Backbone, hvi: Tensor, start: Tensor, iterations: int, *, detached: bool) -> np.ndarray:
    pattern = start.numpy().copy()
    momentum = np.zeros_like(pattern)
    target = network(hvi)
    if detached:
        target = target.detach()
    for _ in range(iterations):
        leaf = torch.from_numpy(pattern).requires_grad_()
        nothing = torch.zeros_like(leaf)
        embedding = network(torch.cat([nothing, leaf, nothing], dim=1))
        loss = F.mse_loss(embedding, target, reduction="none").mean(1)
        network.zero_grad()
        torch.autograd.backward(loss.sum(), retain_graph=True)
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        gradient = gradient / np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        momentum = MOMENTUM * momentum + gradient
        pattern = np.clip(pattern - STEP * momentum, 0, 1)
    return pattern


def ours(network: Backbone, hvi: Tensor, start: Tensor, iterations: int) -> np.ndarray:
    """What `PrivacyHFR.find_patterns` does, the preparation of the network included."""
    with torch.no_grad():
        target = folded(network)(hvi)
    reader = folded(reading_channel(network, 1)).requires_grad_(False)
    found = find_patterns(start, [EmbeddingMatch(reader, target)], UpdateRule(iterations), batch_size=len(start))
    return found.pattern.numpy()


def seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="lightcnn-29v4")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=10, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.backbone}, batch {arguments.batch}, one thread, torch {torch.__version__}")
    generator = torch.Generator().manual_seed(0)
    network = build_backbone(arguments.backbone, generator=generator).eval()
    height, width = network.input_size
    images = 2 * torch.rand(arguments.batch, 3, height, width, generator=generator) - 1
    start = torch.randn(arguments.batch, 1, height, width, generator=generator)
    hvi = remove_frequencies(images, raw_range=True)
    contestants: dict[str, Callable[[int], np.ndarray]] = {
        "plain": lambda n: straightforward(network, hvi, start, n, detached=False),
        "detached": lambda n: straightforward(network, hvi, start, n, detached=True),
        "ppfr": lambda n: ours(network, hvi, start, n),
    }
    patterns = {name: function(CHECKED) for name, function in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, function in contestants.items():
            times[name].append(seconds(partial(function, arguments.iterations)))
    base = statistics.median(times["ppfr"])
    each = 1e3 / arguments.iterations / arguments.batch
    print(f"\n{'':10} {'ms an image and iteration':>26} {'times ppfr':>11}  mean difference after {CHECKED} updates")
    for name, taken in times.items():
        median = statistics.median(taken)
        apart = np.abs(patterns[name] - patterns["ppfr"]).mean()
        print(f"{name:10} {each * median:26.2f} {median / base:11.2f}  {apart:.1e}")


if __name__ == "__main__":
    main()
