"""Audit a client of your own: here one that pixelates the face and adds noise.

    python examples/audit_your_own.py --data DIR --judge judge.onnx --recogniser another.ckpt --out DIR
    python examples/audit_your_own.py                     # on synthetic faces, in about a minute

The audit itself is the two statements of `main` that begin with `method` and `found`. Without --data the faces are
synthetic, and the judge is a small recogniser that learns such faces first: enough to see how it works, not to say
anything about people.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr

SYNTHETIC = "synthetic:people=80,images=8"


def pixelate(images: Tensor) -> Tensor:
    """16x16 pixels of a face (B,3,112,112)."""
    return F.avg_pool2d(images, 7)


def protect(images: Tensor, generator: torch.Generator) -> Tensor:
    """The client: all that leaves the device, (B,3,16,16)."""
    small = pixelate(images)
    return small + 0.1 * torch.randn(small.shape, generator=generator, device=small.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=SYNTHETIC, help="a folder with train.csv and test.csv, or one per identity")
    parser.add_argument("--judge", help="a public recogniser that says whose face came back")
    parser.add_argument("--recogniser", help="the attacker's own public recogniser, never the judge")
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "audit"))
    parser.add_argument("--profile", default="fast")
    given = parser.parse_args()
    out = Path(given.out)
    judge = given.judge or small_judge(given.data, out / "judge")

    # the attacker knows the client but for its noise, which linear inversion measures by itself
    method = ppfr.custom_method("pixelated", protect, clients={"without noise": pixelate}, weakened=pixelate)
    found = ppfr.audit(
        method, given.data, judge=judge, recogniser=given.recogniser, profile=given.profile, out=out / "card"
    )
    print(found.card.verdict)
    print(out / "card" / "card.html")


def small_judge(data: str, folder: Path) -> Path:
    """The run folder of a recogniser that learns the training faces in half a minute."""
    small = {"training": {"epochs": 6}, "backbone": {"width": 0.25, "embedding_size": 64}}
    ppfr.train("arcface", data, folder, profile="quick", overrides=small, resume=True)
    return folder


if __name__ == "__main__":
    main()
