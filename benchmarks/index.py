"""Time exact search among a million templates, against other searches of all templates, in the same run.

    python benchmarks/index.py [--templates 1000000] [--size 512] [--threads 2] [--only plain ppfr]

"plain" is a product of float32 templates with the queries and a top-10 of all scores in PyTorch, "half" the same with
float16 templates, "numpy" a product of float16 templates that are cast to float32 block by block, and the faiss ones
are its scalar quantisers of 8 bits and of halves, each under an id map. All search the same random unit templates for
the same queries: noisy copies of some of them. Every round runs each once, in turn; medians are printed, with the share
of queries whose ten best are those of "plain" in the same order, and the share of those ten that was found.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.serving.search.index import ExactIndex

# its type stubs know neither the wrappers nor half of the classes
faiss: Any = importlib.import_module("faiss")
CHUNK, LIMIT = 50_000, 10
Search = Callable[[Tensor], list[list[int]]]


def by_plain(templates: Tensor) -> Search:
    return lambda asked: (asked.to(templates.dtype) @ templates.T).topk(LIMIT).indices.tolist()


def by_index(templates: Tensor, threads: int) -> Search:
    index = ExactIndex(templates.shape[1], threads=threads)
    for first in range(0, len(templates), CHUNK):
        rows = templates[first : first + CHUNK]
        index.add([str(first + row) for row in range(len(rows))], rows)
    print(f"ppfr takes {index.nbytes / templates.numel():.2f} bytes a value")
    return lambda asked: [[int(match.key) for match in found] for found in index.search(asked, LIMIT)]


def by_numpy(half: Tensor) -> Search:
    templates = half.numpy()

    def search(asked: Tensor) -> list[list[int]]:
        queries = asked.numpy()
        scores = np.empty((len(queries), len(templates)), np.float32)
        for first in range(0, len(templates), CHUNK):
            np.matmul(
                queries, templates[first : first + CHUNK].astype(np.float32).T, out=scores[:, first : first + CHUNK]
            )
        best = np.argpartition(-scores, LIMIT, axis=1)[:, :LIMIT]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        found: list[list[int]] = np.take_along_axis(best, order, 1).tolist()
        return found

    return search


def by_faiss(templates: Tensor, kind: str) -> Search:
    quantiser = getattr(faiss.ScalarQuantizer, kind)
    index = faiss.IndexIDMap2(faiss.IndexScalarQuantizer(templates.shape[1], quantiser, faiss.METRIC_INNER_PRODUCT))
    index.train(templates[:CHUNK].numpy())
    for first in range(0, len(templates), CHUNK):
        rows = templates[first : first + CHUNK].numpy()
        index.add_with_ids(rows, np.arange(first, first + len(rows)))
    return lambda asked: index.search(asked.numpy(), LIMIT)[1].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="searches to time, beside plain")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    plain = torch.empty(arguments.templates, arguments.size)
    for rows in torch.split(plain, CHUNK):
        rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator)))
    picked = torch.randint(arguments.templates, (arguments.batch,), generator=generator)
    noise = torch.randn(arguments.batch, arguments.size, generator=generator) / arguments.size**0.5
    queries = F.normalize(plain[picked] + noise)
    half = plain.half()
    makers: dict[str, Callable[[], Search]] = {
        "plain": lambda: by_plain(plain),
        "half": lambda: by_plain(half),
        "numpy": lambda: by_numpy(half),
        "faiss fp16": lambda: by_faiss(plain, "QT_fp16"),
        "faiss 8 bit": lambda: by_faiss(plain, "QT_8bit"),
        "ppfr": lambda: by_index(plain, arguments.threads),
    }
    print(f"{arguments.templates:,} templates of {arguments.size}, {arguments.threads} threads")
    wanted = makers if arguments.only is None else ["plain", *arguments.only]
    contestants = {name: makers[name]() for name in wanted}
    heading = f"{'one query, ms':>14} {f'{arguments.batch} queries, a second':>24} {'same top 10':>12} {'recall':>7}"
    print(f"{'':11} {heading}")
    kept: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    for _ in range(arguments.rounds):
        for name, search in contestants.items():
            for asked, times in zip((queries[:1], queries), kept[name], strict=True):
                started = time.perf_counter()
                search(asked)
                times.append(time.perf_counter() - started)
    truth = contestants["plain"](queries)
    for name, (alone, together) in kept.items():
        pairs = list(zip(contestants[name](queries), truth, strict=True))
        same = sum(found == best for found, best in pairs) / len(pairs)
        recall = sum(len(set(found) & set(best)) for found, best in pairs) / (LIMIT * len(pairs))
        rate = arguments.batch / statistics.median(together)
        print(f"{name:11} {1e3 * statistics.median(alone):14.1f} {rate:24.0f} {same:12.0%} {recall:7.1%}", flush=True)


if __name__ == "__main__":
    main()
