"""Audit a client of your own: here one that pixelates the face and adds noise.

    python examples/audit_your_own.py --data DIR --judge judge.onnx --recogniser another.ckpt --out DIR
    python examples/audit_your_own.py                     # on synthetic faces, in about a minute

The audit itself is the five lines of `main` that begin with `method`. Without --data the faces are synthetic, and the
judge is a small recogniser that learns such faces first: enough to see how it works, not to say anything about people.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr
from ppfr.auditing.audit import audit
from ppfr.data.sources import open_splits
from ppfr.experiments.workbench import recogniser_of
from ppfr.networks import Recogniser
from ppfr.recipes.recipe import load_recipe
from ppfr.reports.cards import write_audit
from ppfr.training.loop import train
from ppfr.training.run import Run

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
    judge = small_judge(given.data) if given.judge is None else ppfr.load_recogniser(given.judge)
    own = None if given.recogniser is None else ppfr.load_recogniser(given.recogniser)

    # the attacker knows the client but for its noise, which linear inversion measures by itself
    method = ppfr.custom_method("pixelated", protect, clients={"without noise": pixelate}, weakened=pixelate)
    found = audit(method, given.data, judge=judge, recogniser=own, profile=given.profile)
    files = write_audit(found, given.out)
    print(found.card.verdict)
    print(*files, sep="\n")


def small_judge(data: str) -> Recogniser:
    """A recogniser that learns the training faces in half a minute."""
    faces, _ = open_splits(data)
    sizes = {"width": 0.25, "embedding_size": 64}
    recipe = load_recipe("arcface", profile="quick", overrides={"training": {"epochs": 6}, "backbone": sizes})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "judge")
        judge = train(ppfr.create("arcface", recipe.backbone_spec(None)), recipe, faces, run)
        return recogniser_of(judge, run.model_file)


if __name__ == "__main__":
    main()
