"""Checkpoints: one file for what all ranks share, one a rank for its classes, read on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppfr.distributed.process_group import Ranks
from ppfr.heads import Head, ShardedHead
from ppfr.training.run import Run
from ppfr.util.errors import CheckpointError

# a whole head has its classes in columns, a shard in rows under another name
_OF_SHARD, _OF_WHOLE = {"kernel": "centres"}, {"centres": "kernel"}
_VALUES = "values"
# by a shard's name of a class parameter: its values and what the optimizer keeps for each
Rows = dict[str, dict[str, Tensor]]


def save_checkpoint(
    run: Run, ranks: Ranks, state: Mapping[str, Any], parts: nn.ModuleDict, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint: `state` and what `parts` and `optimizer` hold; every rank calls.

    Each rank first writes the rows of its classes to a file of this checkpoint's own name; the common file, which names
    them, then replaces its predecessor in one move. So there is a whole checkpoint at every moment, whoever is killed.
    Raises CheckpointError.
    """
    shards = [name for name, part in parts.items() if isinstance(part, ShardedHead)]
    files: list[str] = []
    common = {"parts": dict(parts.state_dict()), "optimizer": optimizer.state_dict()}
    if shards:
        files = [f"checkpoint-{state['stage']}-{state['step']}-{rank}of{ranks.world}.pt" for rank in range(ranks.world)]
        run.save_tensors(files[ranks.rank], {name: _shard_state(parts[name], optimizer) for name in shards})
        common = _without_classes(common, parts, optimizer)
    ranks.barrier()
    if ranks.first:
        run.save_checkpoint({**state, **common, "shards": dict.fromkeys(shards, files)})
        run.drop_shards(keep=files)
    ranks.barrier()


def restore(run: Run, state: Mapping[str, Any], parts: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Fill `parts` and `optimizer` from a checkpoint, whatever number of ranks wrote it.

    Raises CheckpointError when a shard is missing.
    """
    names = [name for name, part in parts.items() if isinstance(part, Head | ShardedHead)]
    if not state.get("shards") and not any(isinstance(parts[name], ShardedHead) for name in names):
        parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        return
    rows = {name: _rows(run, state, name, parts[name], optimizer) for name in names}
    common = _without_classes(state, parts, optimizer)
    ours = {_canonical(key, names): key for key in parts.state_dict()}
    missing, unknown = parts.load_state_dict(
        {ours[_canonical(key, names)]: value for key, value in common["parts"].items()}, strict=False
    )
    of_classes = {f"{name}.{own}" for name in names for own in _class_parameters(parts[name])}
    if unknown or set(missing) - of_classes:
        raise CheckpointError(f"{run.checkpoint_file}: lacks {sorted(set(missing) - of_classes)}, has {unknown} beside")
    optimizer.load_state_dict(common["optimizer"])
    for name in names:
        for own, parameter in _class_parameters(parts[name]).items():
            whole = isinstance(parts[name], Head)
            for key, value in rows[name][_OF_SHARD.get(own, own)].items():
                value = value.to(parameter)
                if whole and value.ndim == 2:
                    value = value.T.contiguous()
                if key == _VALUES:
                    parameter.data.copy_(value)
                else:
                    optimizer.state[parameter][key] = value


def _class_parameters(head: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with one entry a class, under the head's own names for them."""
    return dict(head.named_parameters(recurse=False))


def _shard_state(head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    assert isinstance(head, ShardedHead)
    rows = {
        own: {_VALUES: parameter.detach(), **_per_class(optimizer.state.get(parameter, {}))}
        for own, parameter in head.class_parameters().items()
    }
    return {"first": head.first, "last": head.last, "rows": rows}


def _per_class(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim}


def _without_classes(
    common: Mapping[str, Any], parts: nn.ModuleDict, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The parts and the optimizer's state but for rows of classes."""
    heads = {name: part for name, part in parts.items() if isinstance(part, Head | ShardedHead)}
    of_classes = {f"{name}.{own}" for name in heads for own in ("kernel", "centres", "bias")}
    positions = {position for head in heads.values() for position, _ in _positions(head, optimizer)}
    packed = common["optimizer"]
    state = {
        position: {k: v for k, v in values.items() if k not in _per_class(values)} if position in positions else values
        for position, values in packed["state"].items()
    }
    return {
        "parts": {key: value for key, value in common["parts"].items() if key not in of_classes},
        "optimizer": {**packed, "state": state},
    }


def _positions(head: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str]]:
    """Where the optimizer counts the head's class parameters, and their names; alike for whole heads and shards."""
    own = {id(parameter): name for name, parameter in _class_parameters(head).items()}
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(listed):
        if id(parameter) in own:
            yield position, own[id(parameter)]


def _rows(run: Run, state: Mapping[str, Any], name: str, head: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
    """The rows of this rank's classes, cut from the shards or from the whole head of a checkpoint."""
    assert isinstance(head, Head | ShardedHead)
    first, last = (head.first, head.last) if isinstance(head, ShardedHead) else (0, head.classes)
    files = state.get("shards", {}).get(name)
    if files is None:
        return _rows_of_whole(state, name, head, optimizer, first, last)
    pieces: dict[str, dict[str, list[Tensor]]] = {}
    for file in files:
        shard = run.load_tensors(file, mapped=True)[name]
        low, high = max(first, shard["first"]), min(last, shard["last"])
        if low < high:
            for own, values in shard["rows"].items():
                for key, value in values.items():
                    piece = value[low - shard["first"] : high - shard["first"]]
                    pieces.setdefault(own, {}).setdefault(key, []).append(piece)
    return {own: {key: torch.cat(found) for key, found in values.items()} for own, values in pieces.items()}


def _rows_of_whole(
    state: Mapping[str, Any],
    name: str,
    head: Head | ShardedHead,
    optimizer: torch.optim.Optimizer,
    first: int,
    last: int,
) -> Rows:
    rows: Rows = {}
    for position, own in _positions(head, optimizer):
        values = {_VALUES: state["parts"][f"{name}.{_OF_WHOLE.get(own, own)}"]}
        values |= _per_class(state["optimizer"]["state"].get(position, {}))
        rows[_OF_SHARD.get(own, own)] = {
            key: (value.T if value.ndim == 2 else value)[first:last].contiguous() for key, value in values.items()
        }
    return rows


def _canonical(key: str, heads: list[str]) -> str:
    """A tensor's name in the checkpoint: moving statistics of a shard go by the whole head's names."""
    for name in heads:
        key = key.replace(f"{name}.formula.", f"{name}.")
    return key
