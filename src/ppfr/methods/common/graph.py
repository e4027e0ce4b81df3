"""A client as a graph: a function of images, secrets and random draws that any runtime can compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppfr.transforms.noise import laplace
from ppfr.transforms.shuffle import draw_permutations


@dataclass(frozen=True)
class Draw:
    """What a client draws anew for each image, and hands to its graph under `name`.

    Kinds: `choice`, whole numbers (*shape) that are uniform over 0 .. of - 1; `permutation`, `shape[0]` independent,
    uniform permutations (*shape) of 0 .. shape[1] - 1; `laplace` and `normal`, noise (*shape) of location 0 and scale
    1. The first two are int64, noise is float32. A deployed client makes them with its platform's cryptographic
    generator.
    """

    name: str
    kind: Literal["choice", "permutation", "laplace", "normal"]
    shape: tuple[int, ...]
    of: int = 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """One such draw: for one image, what `Method.protect` takes from a generator in this state."""
        if self.kind == "choice":
            return torch.randint(self.of, self.shape, generator=generator)
        if self.kind == "permutation":
            return draw_permutations(self.shape[0], self.shape[1], generator)
        if self.kind == "laplace":
            return laplace(self.shape, generator)
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class ProtectGraph:
    """`Method.protect` with everything secret or random as an argument.

    `apply(images, **secrets, **draws)` maps an image (1,3,H,W) in [-1,1], the tensors of `Method.secrets()` named in
    `secrets`, and the `draws` to the payload's tensors. It holds no secret and draws nothing.
    """

    apply: Callable[..., dict[str, Tensor]]
    secrets: tuple[str, ...] = ()
    draws: tuple[Draw, ...] = ()


@dataclass(frozen=True)
class NoGraph:
    """Why a client cannot be a graph; `reason` completes "no graph of this client: "."""

    reason: str
