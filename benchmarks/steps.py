"""Time a training step of each method against the same step done straightforwardly, in the same run.

    python benchmarks/steps.py [--methods minusface proface-c privacyhfr] [--batch 16] [--rounds 5]

A step is forward pass, backward pass and update of one batch, every stage of a method apart, with the teacher's
embeddings as targets. Straightforward ("plain") means: PyTorch's own PReLU; images enlarged 8x before the DCT and
shrunk behind its inverse; channels scaled, taken through the U-Net and scaled back; images blurred one by one. Both
start from the same weights; the draws are the same but for the blur. Every round runs each of them once, in turn,
and medians of processor time on one thread are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import ppfr
from dct import ALL, straightforward, straightforward_inverse
from ppfr.methods import Method, Stage, minusface, proface_c
from ppfr.networks.prelu import PReLU
from ppfr.training.distillation import Distillation
from ppfr.transforms.blur import BlurRange, obfuscate
from ppfr.util.memory import tune_memory

# images that calibrate a stage, so that every kind of payload is seen
_SAMPLE = 144
OPTIONS: dict[str, dict[str, Any]] = {"minusface": {"generator_width": 0.25}}


@contextmanager
def plainly() -> Iterator[None]:
    """Everything that ppfr does in its own way, done straightforwardly."""

    def blur(images: Tensor, kind: str, generator: torch.Generator, strength: BlurRange) -> Tensor:
        return torch.cat([obfuscate(image[None], kind, generator, strength) for image in images])

    def generate(client: minusface.ResidueClient, coefficients: Tensor) -> Tensor:
        made: Tensor = client.generator(client.scale(coefficients)) / client.scale.scale[:, None, None]
        return made

    with (
        patch.object(PReLU, "forward", nn.PReLU.forward),
        patch.object(minusface, "all_channels", lambda images: straightforward(images, ALL).flatten(1, 2)),
        patch.object(minusface, "inverse", lambda values: straightforward_inverse(values.unflatten(1, (3, 64)))),
        patch.object(minusface.ResidueClient, "generate", generate),
        patch.object(proface_c, "obfuscate", blur),
    ):
        yield


def step(method: Method, stage: Stage, parts: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """One update."""
    labels = torch.zeros(len(images), dtype=torch.long)
    targets = torch.randn(len(images), stage.embedding_size, generator=torch.Generator().manual_seed(1))
    outcome = stage.forward(images, labels, torch.Generator().manual_seed(2))
    loss = parts(outcome.embedding, targets) + sum(outcome.losses.values())
    optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
        optimizer.step()


def contestant(name: str, index: int, images: Tensor) -> tuple[str, Method, Stage, nn.Module, torch.optim.Optimizer]:
    method = ppfr.create(name, "mobilefacenet", **OPTIONS.get(name, {}))
    stages = method.stages()
    sample = images.repeat(-(-_SAMPLE // len(images)), 1, 1, 1)
    for stage in stages[: index + 1]:
        if stage.calibrate is not None:
            stage.calibrate(sample, torch.Generator().manual_seed(0))
    stage = stages[index]
    method.requires_grad_(False)
    parts = Distillation(stage.embedding_size, stage.embedding_size, torch.Generator().manual_seed(0))
    learned = [*stage.module.parameters(), *parts.parameters()]
    for parameter in learned:
        parameter.requires_grad_(True)
    return stage.name, method, stage, parts, torch.optim.SGD(learned, 1e-6, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", nargs="+", default=["duetface", "partialface", "minusface", "proface-c", "privacyhfr"]
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tune_memory()
    torch.set_num_threads(1)
    images = 2 * torch.rand(arguments.batch, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 1
    print(f"mobilefacenet, batch {arguments.batch}, one thread, torch {torch.__version__}")
    print(f"{'method':12} {'stage':12} {'plain ms':>9} {'ppfr ms':>9} {'ratio':>6}")
    for name in arguments.methods:
        for index, stage in enumerate(ppfr.create(name, "mobilefacenet").stages()):
            if not list(stage.module.parameters()):
                # a stage that trains a classifier alone has nothing of its own
                continue
            both = [contestant(name, index, images) for _ in range(2)]
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds + 1):
                contexts: tuple[AbstractContextManager[None], ...] = (plainly(), nullcontext())
                for which, ways in enumerate(contexts):
                    _, trained, part, losses, optimizer = both[which]
                    with ways:
                        started = time.process_time()
                        step(trained, part, losses, optimizer, images)
                        times[which].append(1e3 * (time.process_time() - started))
            plain, ours = (statistics.median(kept[1:]) for kept in times)
            print(f"{name:12} {stage.name:12} {plain:9.0f} {ours:9.0f} {plain / ours:6.2f}", flush=True)


if __name__ == "__main__":
    main()
