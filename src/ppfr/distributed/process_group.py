"""The process group under torchrun: rank, world size, and the collectives that are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppfr.util import progress
from ppfr.util.errors import PpfrError

# a rank may decode a whole data set before the others hear from it
_TIMEOUT = timedelta(hours=2)


class RankError(PpfrError, RuntimeError):
    """Another rank failed, so this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` that compute together; alone, every message is a no-op."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Rank and world size from the environment of torchrun (RANK, WORLD_SIZE); joins no group."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """True for the rank that writes shared files and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """True for more than one rank."""
        return self.world > 1

    def device(self, wanted: torch.device | str) -> torch.device:
        """The device of this rank: `cuda` without a number becomes one GPU for each process of a machine."""
        device = torch.device(wanted)
        if str(device) == "cuda" and self.several:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return device

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.several:
            dist.barrier()

    def sum_(self, values: Tensor) -> Tensor:
        """Replace `values` by their sum over the ranks; returns them."""
        if self.several:
            dist.all_reduce(values)
        return values

    def sum_on_cpu_(self, values: Tensor) -> Tensor:
        """As `sum_` for a tensor in main memory, with any backend."""
        if self.several:
            values.copy_(self.sum_(values.to(_message_device())))
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Replace `values` by their maximum over the ranks; returns them."""
        if self.several:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (b, ...) of all ranks, equally many each, one rank behind the other: (world * b, ...). No gradient."""
        if not self.several:
            return rows
        gathered = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """As `gather`, where every rank then computes its own share of one common loss.

        Each rank's gradient of its rows is the sum over all shares of the loss, times the number of ranks: the
        average over ranks that DistributedDataParallel takes of weight gradients divides by it again.
        """
        gathered: Tensor = _Gather.apply(rows, self) if self.several else rows  # type: ignore[no-untyped-call]
        return gathered

    def mean_with_gradient(self, values: Tensor) -> Tensor:
        """Mean of `values` over the ranks, for means over a batch that a loss does more with than add them up."""
        mean: Tensor = _Mean.apply(values, self) if self.several else values  # type: ignore[no-untyped-call]
        return mean

    def on_first(self, action: Callable[[], object]) -> None:
        """Call `action` on the first rank while the others wait; if it fails there, all ranks fail.

        Raises what `action` raised on the first rank, RankError on the others.
        """
        if not self.several:
            action()
            return
        failure: BaseException | None = None
        if self.first:
            try:
                action()
            except Exception as error:
                failure = error
        failed = torch.tensor([float(failure is not None)], device=_message_device())
        dist.broadcast(failed, 0)
        if failure is not None:
            raise failure
        if failed.item():
            raise RankError("the first rank failed; its message says why")


@contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[Ranks]:
    """Join torchrun's process group, and leave it at the end: NCCL for GPUs, gloo for CPUs.

    Without torchrun, or inside a group that is joined already, nothing is joined and nothing left. Returns when all
    ranks are there.
    """
    ranks = Ranks.from_environment()
    if not ranks.several or dist.is_initialized():
        yield ranks
        return
    place = ranks.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))  # type: ignore[attr-defined]
    # after a restart by torchrun the store still holds the addresses of those who died
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    # one progress bar is enough
    progress.console.quiet = not ranks.first
    try:
        ranks.barrier()
        yield ranks
    finally:
        dist.destroy_process_group()


def _message_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.count = ranks, len(rows)
        return ranks.gather(rows.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ranks: Ranks = ctx.ranks
        # gloo has no reduce-scatter for every type; embeddings are small, so all is summed and the own part kept
        total = ranks.sum_(gradients[0].contiguous().clone())
        return total[ranks.rank * ctx.count : (ranks.rank + 1) * ctx.count] * ranks.world, None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(values.detach().clone()) / ranks.world

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ranks: Ranks = ctx.ranks
        return ranks.sum_(gradients[0].contiguous().clone()) / ranks.world, None
