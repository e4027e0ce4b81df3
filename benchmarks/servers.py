"""How soon a second server knows what a first one enrolled or deleted: two processes on one database.

python benchmarks/servers.py --times 50
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from ppfr.util.progress import track
from serverprocess import Server, messages, tiny_deployment

API = "/api/v1/recognition"
_PATIENCE = 60
# between questions, so that asking leaves the server time to look at the database
_PAUSE = 0.002


def open_client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=server.headers, trust_env=False, timeout=60)


def wait_until(there: httpx.Client, message: bytes, subjects: list[str]) -> float:
    """Seconds until a server recognises these subjects in a message."""
    began = time.perf_counter()
    while time.perf_counter() - began < _PATIENCE:
        answer = there.post(f"{API}/recognize", content=message).raise_for_status().json()
        taken = time.perf_counter() - began
        if [one["subject"] for one in answer["result"][0]["subjects"]] == subjects:
            return taken
        time.sleep(_PAUSE)
    raise SystemExit(f"after {_PATIENCE} s the other server still does not answer {subjects}")


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the median, the 99th percentile and the most."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {name: round(1000 * float(one), 1) for name, one in (("median", p50), ("p99", p99), ("most", max(seconds)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="enrolments, and as many deletions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deployment", type=Path, help="what `ppfr export` wrote; a tiny one by default")
    parser.add_argument("--gallery", help="an empty database; SQLite in a temporary folder by default")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    enrolled, deleted = [], []
    with tempfile.TemporaryDirectory() as folder:
        deployment = arguments.deployment or tiny_deployment(Path(folder) / "deployment")
        first = Server(deployment, Path(folder), gallery=arguments.gallery)
        servers = [first, first.beside()]
        (message,) = messages(deployment, 1)
        try:
            for server in servers:
                server.start()
            with open_client(servers[0]) as one, open_client(servers[1]) as other:
                for number in track(range(arguments.times), "enrolments"):
                    # in turn, and at any moment between two looks at the database
                    here, there = (one, other) if number % 2 else (other, one)
                    time.sleep(draw.random())
                    here.post(f"{API}/faces", params={"subject": f"s{number}"}, content=message).raise_for_status()
                    enrolled.append(wait_until(there, message, [f"s{number}"]))
                    time.sleep(draw.random())
                    here.delete(f"{API}/subjects/s{number}").raise_for_status()
                    deleted.append(wait_until(there, message, []))
        finally:
            for server in servers:
                server.stop()
        database = first.gallery.partition(":")[0]
    result = {
        "database": database,
        "times": len(enrolled),
        "enrolled ms": spread(enrolled),
        "deleted ms": spread(deleted),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
