"""What a head for a million identities costs one rank: memory and time, by ranks, classes and sample rate.

    python benchmarks/scaling.py [--classes 1000000] [--size 512] [--rate 0.1] [--batch 64] [--ranks 1 2 4 8 16 64]
                                 [--budget-gb 6] [--steps 3] [--json FILE] [--figure docs/pictures/scaling.svg]
    python benchmarks/scaling.py --from FILE --figure docs/pictures/scaling.svg

One rank is simulated on this machine: it holds its share of the class centres with SGD momentum and takes whole steps
(sample, forward, loss, backward, update) on the embeddings of all ranks; only the messages are missing, and their size
is printed. Rows that would need more memory than the budget are computed: memory from the tensors' sizes, time from a
straight line through the measured rows. Each row says which it is. Times are medians on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppfr.distributed.process_group import Ranks
from ppfr.heads import ShardedHead
from ppfr.util.memory import tune_memory

FLOAT = 4


@dataclass(frozen=True)
class Simulated(Ranks):
    """One rank of many whose messages go nowhere: the others are taken to say what this one says."""

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def max_(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.repeat(self.world, *[1] * (rows.ndim - 1))

    def gather_with_gradient(self, rows: torch.Tensor) -> torch.Tensor:
        return self.gather(rows)


@dataclass
class Row:
    """One configuration: classes of the run, ranks, sample rate, and what a rank needs."""

    classes: int
    ranks: int
    rate: float
    classes_a_rank: int
    sampled_a_rank: int
    model_gb: float
    peak_gb: float
    step_ms: float
    message_mb: float
    origin: str


def predicted(classes: int, size: int, rate: float, batch: int, ranks: int) -> Row:
    """A row from sizes alone: centres and momentum; in a step the sample thrice (rows, normalised, gradient) and its
    state twice, and four matrices of logits."""
    own = -(-classes // ranks)
    sampled = max(1, round(rate * own))
    held = 2 * own * size * FLOAT
    step = 5 * sampled * size * FLOAT + 4 * batch * ranks * sampled * FLOAT
    if rate == 1:
        # nothing is copied; the gradient and the normalised centres come beside
        step = 2 * own * size * FLOAT + 4 * batch * ranks * own * FLOAT
    # embeddings both ways and a few numbers for each image
    message = batch * ranks * (2 * size + 4) * FLOAT
    return Row(
        classes, ranks, rate, own, sampled, held / 1e9, (held + step) / 1e9, float("nan"), message / 1e6, "computed"
    )


def measure(classes: int, size: int, rate: float, batch: int, ranks: int, steps: int) -> dict[str, float]:
    """Peak memory above the start and the median time of a step of rank 0, in a process of its own."""
    torch.set_num_threads(1)
    tune_memory()
    before = _peak()
    head = ShardedHead("cosface", embedding_size=size, classes=classes, ranks=Simulated(0, ranks), sample_rate=rate)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    times = []
    for step in range(steps + 1):
        embeddings = torch.randn(batch, size, generator=generator, requires_grad=True)
        labels = torch.randint(classes, (batch,), generator=generator)
        started = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        head(embeddings, labels, torch.Generator().manual_seed(step)).backward()
        with head.stepping(optimizer):
            optimizer.step()
        times.append(time.process_time() - started)
    return {"peak": _peak() - before, "step": statistics.median(times[1:])}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def fill_times(rows: list[Row], size: int, batch: int) -> None:
    """Extend measured times to the other rows: so much for each sampled row, logit and class drawn for a sample."""

    def work(row: Row) -> list[float]:
        values = row.sampled_a_rank * size
        return [values / 1e6, batch * row.ranks * values / 1e9, (row.rate < 1) * row.classes_a_rank / 1e6]

    known = [row for row in rows if row.origin == "measured"]
    slopes = np.linalg.lstsq(np.array([work(row) for row in known]), np.array([row.step_ms for row in known]))[0]
    for row in rows:
        if row.origin != "measured":
            row.step_ms = float(np.dot(work(row), slopes))


def draw(rows: list[Row], path: Path) -> None:
    """Memory and step time of a rank by ranks, a line for each number of classes and rate; hollow: computed."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    lines = sorted({(row.classes, row.rate) for row in rows})
    colours = {classes: f"C{at}" for at, classes in enumerate(sorted({row.classes for row in rows}))}
    for classes, rate in lines:
        chosen = [row for row in rows if (row.classes, row.rate) == (classes, rate)]
        for axes, values in ((memory, [row.peak_gb for row in chosen]), (seconds, [row.step_ms for row in chosen])):
            style = "--" if rate == 1 else "-"
            title = f"{classes / 1e6:g} M classes, rate {rate:g}"
            axes.plot([row.ranks for row in chosen], values, style, color=colours[classes], label=title)
            for row, value in zip(chosen, values, strict=True):
                full = colours[classes] if row.origin == "measured" else "white"
                axes.plot(row.ranks, value, "o", color=colours[classes], markerfacecolor=full)
    for axes, title in ((memory, "peak memory of a rank, GB"), (seconds, "step of a rank, ms, one CPU thread")):
        axes.set(xscale="log", yscale="log", xlabel="ranks", title=title)
        ranks = sorted({row.ranks for row in rows})
        axes.set_xticks(ranks, [str(number) for number in ranks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same figures give the same file
    with rc_context({"svg.hashsalt": "scaling"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rate", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--batch", type=int, default=64, help="images of one rank")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--budget-gb", type=float, default=6.0)
    parser.add_argument("--budget-gflop", type=float, default=600.0, help="matrix work of one step worth waiting for")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="draw what --json wrote, measure nothing")
    arguments = parser.parse_args()
    if arguments.source:
        rows = [Row(**row) for row in json.loads(arguments.source.read_bytes())]
    else:
        rows = measured(arguments)
    if arguments.figure:
        draw(rows, arguments.figure)


def measured(arguments: argparse.Namespace) -> list[Row]:
    """Measure or compute every row, and print them."""
    rows = []
    print(
        f"{arguments.size}-d, {arguments.batch} images a rank, float32, SGD with momentum, one thread of this machine"
    )
    print(f"{'classes':>10} {'rate':>5} {'ranks':>5} {'held GB':>8} {'peak GB':>8} {'step ms':>8} {'sent MB':>8}")
    context = multiprocessing.get_context("spawn")
    for classes in arguments.classes:
        for rate in arguments.rate:
            for ranks in arguments.ranks:
                row = predicted(classes, arguments.size, rate, arguments.batch, ranks)
                flop = 6 * arguments.batch * ranks * row.sampled_a_rank * arguments.size / 1e9
                if row.peak_gb <= arguments.budget_gb and flop <= arguments.budget_gflop:
                    setting: Any = (classes, arguments.size, rate, arguments.batch, ranks, arguments.steps)
                    with context.Pool(1) as pool:
                        found = pool.apply(measure, setting)
                    row.peak_gb, row.step_ms, row.origin = found["peak"] / 1e9, 1e3 * found["step"], "measured"
                rows.append(row)
    fill_times(rows, arguments.size, arguments.batch)
    for row in rows:
        print(
            f"{row.classes:10,} {row.rate:5.2f} {row.ranks:5} {row.model_gb:8.2f} {row.peak_gb:8.2f} "
            f"{row.step_ms:8.0f} {row.message_mb:8.1f}  {row.origin}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
