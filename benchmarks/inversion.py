"""How well linear inversion does on real faces: every PartialFace subset at several precisions, and DuetFace.

    python benchmarks/inversion.py --data DIR --judge judge.onnx [--bits 32,8,6,4] [--methods partialface,duetface]

One query from each test person is protected, coarsened to the given bits and attacked by one who knows the deployment's
secrets but not the client's draws, and who has the training faces. The judge matches what comes back against three
other clear photographs of every person. A payload at b bits has 2^b levels, evenly spaced between the least and the
largest value of each channel of each image. Clients need no training: what is attacked is their fixed transform.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import ppfr
from ppfr.attacks.base import create_attack
from ppfr.attacks.metrics import MetricContext, Truth
from ppfr.data.images import to_tensor
from ppfr.data.sources import open_splits
from ppfr.evaluation.metrics.identification import draw_search
from ppfr.methods import Method, Payload

FULL = 32
PUBLIC_FACES = 1024


def coarsened(payload: Payload, bits: int) -> Payload:
    """Each channel of each image rounded to 2^bits levels between its extremes; 32 bits leave it as it is."""
    if bits == FULL:
        return payload
    return Payload(payload.schema, {name: rounded(tensor, bits) for name, tensor in payload.tensors.items()})


def rounded(tensor: Tensor, bits: int) -> Tensor:
    low, high = tensor.amin((2, 3), keepdim=True), tensor.amax((2, 3), keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    coarse: Tensor = ((tensor - low) / step).round() * step + low
    return coarse


def payloads(method: Method, images: Tensor, seed: int) -> dict[str, Payload]:
    """What the client sends: of PartialFace every subset in turn, with the orders in turn; else as it draws."""
    clients = method.hypotheses()
    if method.info.name != "partialface":
        return {method.info.title: method.protect(images, torch.Generator().manual_seed(seed))}
    orders = len(clients) // 6
    found = {}
    for subset in range(6):
        rows = [clients[orders * subset + row % orders].apply(images[row : row + 1]) for row in range(len(images))]
        tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        found[f"PartialFace, subset {subset}"] = Payload(method.schema, tensors)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--bits", default="32,8,6,4")
    parser.add_argument("--methods", default="partialface,duetface")
    parser.add_argument("--people", type=int, default=None, help="fewer people, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    judge = ppfr.load_recogniser(chosen.judge)
    train, test = open_splits(chosen.data)
    public = to_tensor(train.images(np.linspace(0, len(train) - 1, PUBLIC_FACES).astype(np.int64)))
    search = draw_search(test.labels, photos=3, seed=chosen.seed)
    people = len(search.probes) if chosen.people is None else chosen.people
    probes, gallery = search.probes[:people], search.gallery[: 3 * people]
    images = to_tensor(test.images(probes))
    print(f"{'client':24}{'bits':>5}{'Rank-1':>9}{'clear':>8}{'of clear':>10}{'SSIM':>7}{'kinds':>7}{'s/face':>8}")
    for name in chosen.methods.split(","):
        method = ppfr.create(name, "mobilefacenet", width=0.25, embedding_size=32)
        with torch.no_grad():
            sent = payloads(method, images, chosen.seed)
        for bits in map(int, chosen.bits.split(",")):
            shares = []
            for title, payload in sent.items():
                started = time.perf_counter()
                found = create_attack("linear-inversion")(method, coarsened(payload, bits), faces=public)
                seconds = (time.perf_counter() - started) / people
                truth = Truth(images, test.labels[probes], to_tensor(test.images(gallery)), test.labels[gallery])
                measured = found.measure(MetricContext(truth, judge))
                rank1 = measured["rank1"]
                assert rank1.ceiling
                shares.append(rank1.value / rank1.ceiling)
                figures = f"{rank1.value:9.3f}{rank1.ceiling:8.3f}{shares[-1]:10.3f}{measured['ssim'].value:7.3f}"
                print(f"{title:24}{bits:5}{figures}{len(set(found.hypotheses)):7}{seconds:8.2f}", flush=True)
            print(json.dumps({"method": name, "bits": bits, "mean_share_of_clear": float(np.mean(shares))}), flush=True)


if __name__ == "__main__":
    main()
