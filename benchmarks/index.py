"""Time exact search among a million templates, against straightforward searches, in the same run.

    python benchmarks/index.py [--templates 1000000] [--size 512] [--threads 2]

"plain" is a product of float32 templates with the queries and a top-10 of all scores, "half" the same with float16
templates, which take as much memory as ppfr's. All search the same random unit templates for the same queries: noisy
copies of some of them. Every round runs each once, in turn; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.serving.search.index import ExactIndex

CHUNK, LIMIT = 50_000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    index = ExactIndex(arguments.size)
    plain = torch.empty(arguments.templates, arguments.size)
    for first in range(0, arguments.templates, CHUNK):
        rows = plain[first : first + CHUNK]
        rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator)))
        index.add([str(first + row) for row in range(len(rows))], rows)
    half = plain.half()
    picked = torch.randint(arguments.templates, (arguments.batch,), generator=generator)
    noise = torch.randn(arguments.batch, arguments.size, generator=generator) / arguments.size**0.5
    queries = F.normalize(plain[picked] + noise)

    def by_index(asked: Tensor) -> list[list[int]]:
        return [[int(match.key) for match in found] for found in index.search(asked, LIMIT)]

    def by_plain(asked: Tensor) -> list[list[int]]:
        return (asked @ plain.T).topk(LIMIT).indices.tolist()

    def by_half(asked: Tensor) -> list[list[int]]:
        return (asked.half() @ half.T).topk(LIMIT).indices.tolist()

    contestants: dict[str, Callable[[Tensor], list[list[int]]]] = {"plain": by_plain, "half": by_half, "ppfr": by_index}
    size = index.nbytes / arguments.templates / arguments.size
    print(f"{len(index):,} templates of {arguments.size}, {size:.2f} bytes a value, {arguments.threads} threads")
    print(f"{'':6} {'one query, ms':>14} {f'{arguments.batch} queries, a second':>24} {'same top 10 as plain':>22}")
    kept: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    for _ in range(arguments.rounds):
        for name, search in contestants.items():
            for asked, times in zip((queries[:1], queries), kept[name], strict=True):
                started = time.perf_counter()
                search(asked)
                times.append(time.perf_counter() - started)
    truth = by_plain(queries)
    for name, (alone, together) in kept.items():
        same = sum(found == wanted for found, wanted in zip(contestants[name](queries), truth, strict=True))
        rate = arguments.batch / statistics.median(together)
        print(
            f"{name:6} {1e3 * statistics.median(alone):14.1f} {rate:24.0f} {same / arguments.batch:22.0%}", flush=True
        )


if __name__ == "__main__":
    main()
