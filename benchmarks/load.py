"""Recognise end to end under load: `ppfr serve` in a process of its own, so many clients that ask without pause.

python benchmarks/load.py --concurrency 1 8 32 --seconds 20 --enrolled 10000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch

from ppfr.serving.contract import Contract
from ppfr.serving.gallery.gallery import Gallery
from ppfr.util.progress import track
from serverprocess import Server, messages, tiny_deployment

ROUTE = "/api/v1/recognition/recognize"
_SUBJECTS_EACH = 4


def enrol(server: Server, deployment: Path, count: int) -> None:
    """Random templates straight into the database: the server indexes them when it starts."""
    contract = Contract.load(deployment / "server")
    gallery = Gallery(server.gallery, server.keyring, contract.id, contract.embedding_size)
    generator = torch.Generator().manual_seed(1)
    for number in track(range(count), "enrolling"):
        gallery.faces.enrol(f"s{number // _SUBJECTS_EACH}", torch.randn(contract.embedding_size, generator=generator))
    gallery.close()


async def ask(server: Server, bodies: list[bytes], clients: int, seconds: float) -> tuple[list[float], float, int]:
    """Seconds of each answer, seconds in all, and how many answers were none."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    taken: list[float] = []
    failed = 0
    async with httpx.AsyncClient(
        base_url=server.url, headers=server.headers, trust_env=False, limits=limits, timeout=60
    ) as http:

        async def client(first: int) -> None:
            nonlocal failed
            number = first
            while time.perf_counter() < end:
                began = time.perf_counter()
                answer = await http.post(ROUTE, content=bodies[number % len(bodies)])
                taken.append(time.perf_counter() - began)
                failed += answer.status_code != 200
                number += clients

        started = time.perf_counter()
        end = started + seconds
        await asyncio.gather(*(client(number) for number in range(clients)))
        return taken, time.perf_counter() - started, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="clients at once")
    parser.add_argument("--seconds", type=float, default=20, help="how long each number of clients asks")
    parser.add_argument("--enrolled", type=int, default=10_000, help="templates in the gallery")
    parser.add_argument("--deployment", type=Path, help="what `ppfr export` wrote; a tiny one by default")
    parser.add_argument("--gallery", help="an empty database; SQLite in a temporary folder by default")
    parser.add_argument("--index", default="exact", help="as of `ppfr serve`")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        deployment = arguments.deployment or tiny_deployment(Path(folder) / "deployment")
        server = Server(deployment, Path(folder), gallery=arguments.gallery, index=arguments.index)
        enrol(server, deployment, arguments.enrolled)
        bodies = messages(deployment, 64)
        try:
            server.start()
            asyncio.run(ask(server, bodies, 1, min(2.0, arguments.seconds)))
            for clients in arguments.concurrency:
                taken, seconds, failed = asyncio.run(ask(server, bodies, clients, arguments.seconds))
                p50, p99 = (round(1000 * float(value), 1) for value in np.percentile(taken, [50, 99]))
                rows.append(
                    {
                        "clients": clients,
                        "answers": len(taken),
                        "failed": failed,
                        "a second": round(len(taken) / seconds, 1),
                        "p50 ms": p50,
                        "p99 ms": p99,
                    }
                )
        finally:
            server.stop()
        size = round(sum(map(len, bodies)) / len(bodies))
    command = "python benchmarks/load.py " + " ".join(sys.argv[1:])
    told = {"command": command, "enrolled": arguments.enrolled, "index": arguments.index, "bytes a message": size}
    print(json.dumps(told | {"clients": rows}, indent=2))
    if any(row["failed"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
