"""Fixtures of the evaluation room: a tiny method and faces that it tells apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppfr.data.faceset import FaceSet
from ppfr.methods import BackboneSpec, Method, MethodInfo, MethodOptions, PayloadSchema, Stage, TensorSpec

SIDE = 28


class Tiny(Method):
    """Sends a four times smaller image, one plane of three (drawn at random) doubled; embeds it linearly."""

    info = MethodInfo(name="tiny", title="Tiny", paper="none")

    def __init__(self) -> None:
        super().__init__(MethodOptions(), BackboneSpec(), torch.Generator())
        self.client = nn.Conv2d(3, 3, 4, stride=4, groups=3, bias=False)
        self.server = nn.Sequential(nn.Dropout(0.5), nn.Linear(3 * SIDE * SIDE, 8, bias=False))
        with torch.no_grad():
            self.client.weight.fill_(1 / 16)
            self.server[1].weight.normal_(generator=torch.Generator().manual_seed(0))
        self.batches: list[int] = []

    @property
    def schema(self) -> PayloadSchema:
        return PayloadSchema("tiny", {"small": TensorSpec((3, SIDE, SIDE), "a small image")})

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.batches.append(len(images))
        planes = torch.randint(3, (len(images),), generator=generator, device=images.device)
        doubled = 1 + functional.one_hot(planes, 3).to(images.dtype)[:, :, None, None]
        return {"small": self.client(images) * doubled}

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        embedding: Tensor = self.server(tensors["small"].flatten(1))
        return embedding

    def stages(self) -> list[Stage]:
        return []


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def faces() -> FaceSet:
    """Ten people of six images each: a pattern of the person's own under noise."""
    rng = np.random.default_rng(0)
    people = rng.integers(30, 220, size=(10, 7, 7, 3)).repeat(16, axis=1).repeat(16, axis=2)
    images = np.repeat(people, 6, axis=0) + rng.normal(0, 30, size=(60, 112, 112, 3))
    pixels = images.clip(0, 255).astype(np.uint8)
    labels = np.repeat(np.arange(10), 6)
    return FaceSet("ten", [f"p{n}" for n in labels], lambda rows: pixels[rows], names=[f"{n}.png" for n in range(60)])
