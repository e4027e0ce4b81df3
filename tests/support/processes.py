"""Runs a function on several ranks of a gloo group, as torchrun would, without starting Python anew."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

_Result = TypeVar("_Result")
_PATIENCE = 240


def on_ranks(world: int, function: Callable[[], _Result]) -> list[_Result]:
    """What `function` returns on each of `world` ranks (tensors and plain values); raises what any of them raised."""
    with tempfile.TemporaryDirectory() as folder:
        # a fork inherits closures and loaded modules; nothing here has started threads that would be lost
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_work, args=(rank, world, function, folder)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_PATIENCE)
        stuck = [process for process in processes if process.is_alive()]
        for process in stuck:
            process.kill()
        failures = sorted(Path(folder).glob("*.failed"))
        if failures:
            raise AssertionError("\n".join(f"{file.stem}: {file.read_text()}" for file in failures))
        assert not stuck, f"{len(stuck)} of {world} ranks hung"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _work(rank: int, world: int, function: Callable[[], object], folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        torch.save(function(), Path(folder) / f"{rank}.pt")
        dist.barrier()
    except BaseException:
        (Path(folder) / f"{rank}.failed").write_text(traceback.format_exc())
        os._exit(1)
    # no exit handlers: they belong to the parent
    os._exit(0)
