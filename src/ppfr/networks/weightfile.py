"""Read tensors from untrusted weight files without executing code that they may contain."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ppfr.util.errors import CheckpointError

State = dict[str, Tensor]

# where public training code puts the network's state_dict inside what it saves, most specific first
_WRAPPERS = (
    "state_dict",
    "net_state_dict",
    "model_state_dict",
    "state_dict_backbone",
    "backbone",
    "model",
    "net",
    "plfd_backbone",  # so spelt in the public PFLD weights
    "pfld_backbone",
)
_DEPTH = 4
# bookkeeping of training frameworks that travels beside the weights; an inert placeholder stands in for it
_BOOKKEEPING = ("pytorch_lightning.", "lightning.", "omegaconf.", "argparse.Namespace")


class _Placeholder:
    """Inert replacement for a training framework's object in a checkpoint."""

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        del state


def read_state_dict(path: Path | str) -> tuple[State, tuple[str, ...]]:
    """Return the tensors of a weight file by name, and the keys under which they were nested.

    Reads safetensors and what `torch.save` wrote, the latter with `weights_only`. Objects of PyTorch
    Lightning, OmegaConf and argparse beside the tensors are replaced by inert placeholders; any other
    object is refused. Raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"weight file {str(path)!r} {what}; expected a .pt, .pth, .ckpt or .safetensors file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> State:
    try:
        state: State = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a readable safetensors file: {error}") from error
    return state


def _read_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path.name} is a TorchScript program, which can run code; expected a state_dict: "
            "export it with torch.save(model.state_dict(), ...)"
        )
    foreign = _foreign_globals(path)
    allowed: list[Any] = [(_Placeholder, name) for name in foreign if name.startswith(_BOOKKEEPING)]
    refused = [name for name in foreign if not name.startswith(_BOOKKEEPING)]
    if refused:
        raise CheckpointError(
            f"{path.name} holds Python objects other than tensors ({', '.join(refused)}) and was not opened: "
            "such a file can run code. Save its state_dict alone, with torch.save or as safetensors"
        )
    try:
        with torch.serialization.safe_globals(allowed):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # the rest of PyTorch's message is advice to read such files in a way that can run code
        reason = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\.\s|\n|$)", str(error))
        raise CheckpointError(
            f"{path.name} is no PyTorch checkpoint, or holds more than tensors, and was not opened "
            f"({reason[1] if reason else type(error).__name__}). Save its state_dict alone, with torch.save or as "
            "safetensors"
        ) from error
    except Exception as error:  # a damaged file fails in torch, zipfile or pickle, each with errors of its own
        raise CheckpointError(
            f"{path.name} is not a readable PyTorch file ({type(error).__name__}: {error}); "
            "it may be cut short, or another format"
        ) from error
    return content


def _is_torchscript(path: Path) -> bool:
    """Whether an archive is a program; raises CheckpointError for a damaged one: PyTorch ignores the checksums."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    # what zipfile raises for archives that are none: also for methods and sizes that no archive has
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"{path.name} is not a readable PyTorch file ({error}); it may be cut short") from error
    if damaged:
        raise CheckpointError(f"{path.name} is not a readable PyTorch file: its part {damaged} fails its checksum")
    return any(name.endswith("/constants.pkl") for name in names)


def _foreign_globals(path: Path) -> list[str]:
    """Names in a zip checkpoint that the tensors-only reader does not know; [] for other formats."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a torch archive or damaged: torch.load gives the reason
        return []


def _unwrap(content: object, path: Path) -> tuple[State, tuple[str, ...]]:
    wrappers: list[str] = []
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state, tuple(wrappers)
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        wrappers.append(inner)
        content = content[inner]
    held = f"keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path.name} holds no tensors where a state_dict is expected ({held}); "
        "expected one at the top or under " + ", ".join(_WRAPPERS)
    )
