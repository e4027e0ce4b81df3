"""A method whose client is any function that a test gives it, and images for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.methods import BackboneSpec, Hypothesis, Method, MethodInfo, MethodOptions, PayloadSchema, Stage, TensorSpec

SIZE = (24, 20)
Client = Callable[[Tensor], dict[str, Tensor]]


class ToyMethod(Method):
    """Draws one of several clients for each image; not registered."""

    info = MethodInfo(name="toy", title="Toy", paper="none", secrets=("draw",))

    def __init__(self, clients: Sequence[Client]) -> None:
        super().__init__(MethodOptions(), BackboneSpec("mobilefacenet"), torch.Generator())
        self.input_size = SIZE
        self.clients = clients
        self.client = self.server = nn.Identity()

    @property
    def schema(self) -> PayloadSchema:
        sent = self.clients[0](torch.zeros(1, 3, *SIZE))
        return PayloadSchema("toy", {name: TensorSpec(tuple(part.shape[1:]), name) for name, part in sent.items()})

    def draw(self, images: Tensor, generator: torch.Generator) -> list[int]:
        return torch.randint(len(self.clients), (len(images),), generator=generator).tolist()

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        kinds = self.draw(images, generator)
        rows = [self.clients[kind](image[None]) for kind, image in zip(kinds, images, strict=True)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def hypotheses(self) -> list[Hypothesis]:
        return [Hypothesis(f"client {kind}", partial(client)) for kind, client in enumerate(self.clients)]

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return next(iter(tensors.values())).flatten(1)

    def stages(self) -> list[Stage]:
        return []


def smooth_images(count: int, seed: int) -> Tensor:
    """Blurred noise (count,3,24,20) in [-1,1]: edges and flat parts, as photographs have."""
    noise = torch.rand(count, 3, SIZE[0] + 6, SIZE[1] + 6, generator=torch.Generator().manual_seed(seed))
    blurred = F.avg_pool2d(noise, 7, stride=1) - 0.5
    return (6 * blurred).clamp(-1, 1)
