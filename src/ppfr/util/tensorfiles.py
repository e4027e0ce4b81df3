"""Tensors as safetensors, byte for byte the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save, save_file
from torch import Tensor

from ppfr.util.files import atomic_path


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors buffer of tensors, wherever they lie, and of `metadata` in the order of its keys."""
    data = save(_plain(tensors), metadata=None if metadata is None else dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:8] + _ordered(data[8:end]) + data[end:]


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    mode: int | None = None,
) -> None:
    """Write what `tensor_bytes` gives to a file, atomically; `mode` as for `atomic_path`."""
    with atomic_path(path, mode=mode) as temporary:
        save_file(_plain(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        with open(temporary, "rb+") as stream:
            header = stream.read(int.from_bytes(stream.read(8), "little"))
            stream.seek(8)
            stream.write(_ordered(header))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _ordered(header: bytes) -> bytes:
    """A header of the same length with its metadata sorted: the library writes them in an order that it draws."""
    entries = json.loads(header)
    if "__metadata__" in entries:
        entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    ordered = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(ordered) <= len(header)
    return ordered.ljust(len(header))
