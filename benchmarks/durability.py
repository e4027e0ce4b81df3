"""SIGKILL the server while clients enrol: what it acknowledged must be there after the restart, once.

python benchmarks/durability.py --enrolments 2000 --kills 20
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.check import check_gallery
from ppfr.util.progress import track
from serverprocess import Server, messages, tiny_deployment

API = "/api/v1/recognition"
_CLIENTS = 8


class Series:
    """Enrolments by number, each with a subject and an idempotency key of its own, and the face ids that came back."""

    def __init__(self, server: Server, bodies: list[bytes], count: int) -> None:
        self._server, self._bodies, self.count = server, bodies, count
        self.acknowledged: dict[int, str] = {}

    async def enrol(self, until: int) -> None:
        """Enrol what is not acknowledged yet; the server is killed as soon as `until` enrolments are."""
        waiting = iter([number for number in range(self.count) if number not in self.acknowledged])
        async with httpx.AsyncClient(base_url=self._server.url, trust_env=False, timeout=60) as http:
            await asyncio.gather(*(self._client(http, waiting, until) for _ in range(_CLIENTS)))

    async def _client(self, http: httpx.AsyncClient, waiting: Iterator[int], until: int) -> None:
        for number in waiting:
            try:
                self.acknowledged[number] = await self.post(http, number)
            except httpx.TransportError:
                # killed: whether this one was stored is not known
                return
            if len(self.acknowledged) == until < self.count:
                self._server.kill()
                return

    async def post(self, http: httpx.AsyncClient, number: int) -> str:
        """One enrolment; the same bytes whenever it is repeated."""
        headers = self._server.headers | {"Idempotency-Key": f"enrolment-{number}"}
        body = self._bodies[number % len(self._bodies)]
        answer = await http.post(f"{API}/faces", params={"subject": f"s{number}"}, content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["image_id"])

    async def repeat(self) -> int:
        """Send everything again; returns how many got another face than before."""
        async with httpx.AsyncClient(base_url=self._server.url, trust_env=False, timeout=60) as http:
            return sum([await self.post(http, number) != face for number, face in self.acknowledged.items()])


def problems(server: Server, series: Series) -> dict[str, int]:
    """Asked of a server that has just started: acknowledged faces that are gone, doubled ones, ones not indexed."""
    with httpx.Client(base_url=server.url, trust_env=False, headers=server.headers, timeout=60) as http:
        held: list[dict[str, str]] = []
        for page in itertools.count():
            answer = http.get(f"{API}/faces", params={"size": 1000, "page": page}).json()
            held += answer["faces"]
            if page + 1 >= answer["total_pages"]:
                break
        indexed = int(float(re.search(r"^ppfr_indexed_faces (\S+)", http.get("/metrics").text, re.M)[1]))  # type: ignore[index]
    ids = {face["image_id"] for face in held}
    return {
        "lost": sum(face not in ids for face in series.acknowledged.values()),
        "doubled": sum(count - 1 for count in Counter(face["subject"] for face in held).values()),
        "not indexed": abs(len(held) - indexed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enrolments", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deployment", type=Path, help="what `ppfr export` wrote; a tiny one by default")
    parser.add_argument("--gallery", help="an empty database; SQLite in a temporary folder by default")
    arguments = parser.parse_args()
    started, draw = time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        deployment = arguments.deployment or tiny_deployment(Path(folder) / "deployment")
        server = Server(deployment, Path(folder), gallery=arguments.gallery)
        series = Series(server, messages(deployment, 16), arguments.enrolments)
        found: Counter[str] = Counter()
        # a kill somewhere in each of as many parts
        ends = [arguments.enrolments * part // (arguments.kills + 1) for part in range(arguments.kills + 1)]
        moments = [draw.randrange(first + 1, last + 1) for first, last in itertools.pairwise(ends)]
        try:
            for moment in track([*moments, arguments.enrolments], "kills"):
                server.start()
                found.update(problems(server, series))
                asyncio.run(series.enrol(max(moment, len(series.acknowledged) + 1)))
            found["repeated with another face"] += asyncio.run(series.repeat())
            found.update(problems(server, series))
        finally:
            server.stop()
        gallery = Gallery.existing(server.gallery, server.keyring)
        report = check_gallery(gallery, server.keyring, "exact")
        gallery.close()
    result = {
        "enrolments": arguments.enrolments,
        "acknowledged": len(series.acknowledged),
        "kills": len(moments),
        "faces": report.faces,
        **found,
        "gallery problems": report.problems,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result, indent=2))
    if sum(found.values()) or report.problems or not report.faces == len(series.acknowledged) == arguments.enrolments:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
