"""Training pairs: images, and the payloads that an attacker sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ppfr.attacks.budget import row_chunks
from ppfr.methods.common.payload import Payload, PayloadSchema


class TrainingPairs:
    """Images (n,3,H,W) in [-1,1] and their payloads, which are obtained when they are asked for.

    `observe` gives the payloads of some rows; where they are `fresh`, each call is a new draw of the client, else they
    are always the same.
    """

    def __init__(
        self,
        images: Tensor,
        schema: PayloadSchema,
        observe: Callable[[list[int], torch.Generator], Payload],
        *,
        fresh: bool,
    ) -> None:
        self.images, self.fresh = images, fresh
        self._schema, self._observe = schema, observe

    def __len__(self) -> int:
        return len(self.images)

    def payloads(self, rows: Sequence[int], generator: torch.Generator) -> Payload:
        """Payloads of the images in `rows`."""
        return self._observe(list(rows), generator)

    def in_chunks(self, rows: Sequence[int], generator: torch.Generator) -> Iterator[Payload]:
        """Payloads of many images, a few at a time."""
        for part in row_chunks(len(rows), self._schema):
            yield self.payloads(rows[part.start : part.stop], generator)

    def __str__(self) -> str:
        return f"{len(self)} {'public faces sent through the client' if self.fresh else 'payload/image pairs'}"
