"""Mutate payloads and read them: nothing but PayloadError may come out, and memory must stay bounded.

python benchmarks/fuzz_wire.py --mutations 100000
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from collections import Counter

import numpy as np
import torch
import zstandard

from ppfr.methods import BackboneSpec, Payload, create
from ppfr.util.errors import PayloadError
from ppfr.util.progress import track

CODINGS = ("float32", "float16", "int8", "dct:0.05")


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """A message with bytes changed, cut, doubled or inserted; behind the checksum in half of the cases."""
    inside = generator.random() < 0.5
    body = bytearray(zstandard.decompress(data) if inside else data)
    # headers lie in front, where a change does most
    reach = min(len(body), 600) if generator.random() < 0.5 else len(body)
    for _ in range(generator.integers(1, 8)):
        place = int(generator.integers(reach))
        kind = generator.integers(4)
        if kind == 0:
            body[min(place, len(body) - 1)] = int(generator.integers(256))
        elif kind == 1:
            del body[place : place + int(generator.integers(1, 64))]
        elif kind == 2:
            body[place:place] = generator.bytes(int(generator.integers(1, 16)))
        else:
            body[place:place] = body[place : place + int(generator.integers(1, 256))]
        reach = max(1, min(reach, len(body)))
        if not body:
            break
    return zstandard.compress(bytes(body), 1) if inside else bytes(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    method = create("partialface", BackboneSpec("ir18", 8, 0.0625, (16, 16)))
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    payload = method.protect(images, torch.Generator().manual_seed(0))
    messages = [payload.to_bytes(coding, contract="fuzz") for coding in CODINGS]
    generator = np.random.default_rng(arguments.seed)
    outcomes: Counter[str] = Counter()
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in track(range(arguments.mutations), "mutations"):
        data = mutate(messages[number % len(messages)], generator)
        try:
            Payload.from_bytes(data, payload.schema, contract="fuzz", images=4)
            outcomes["read"] += 1
        except PayloadError as error:
            outcomes[re.sub(r"\d+", "N", str(error))[:60]] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for outcome, count in outcomes.most_common(12):
        print(f"{count:8d}  {outcome}")
    print(f"{arguments.mutations} mutations in {time.monotonic() - started:.0f} s; memory grew by {grown:.0f} MiB")


if __name__ == "__main__":
    main()
