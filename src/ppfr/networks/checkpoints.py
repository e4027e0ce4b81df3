"""Published recognition checkpoints: the architecture is inferred from the file, which is loaded whole or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ppfr.networks.base import Backbone
from ppfr.networks.layouts import CheckpointLayout, find_layout, infer_backbone
from ppfr.networks.preprocessing import ChannelOrder, Preprocessing
from ppfr.networks.weightfile import State, read_state_dict
from ppfr.util.errors import CheckpointError
from ppfr.util.files import sha256_file

LISTED = 8  # keys of one kind that an error message spells out

# of DistributedDataParallel, torch.compile, AdaFace, CVLface, and of the clients of DuetFace and PRO-Face C
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "client_backbone.")
# heads and losses saved with the backbone, and further tensors that PRO-Face C saves with its client
_BESIDE = re.compile(
    r"(module\.)*((head|softmax_fc|classifier|fc2|loss|interface_[1-4])\.|(weight[1-4]|channel_permutations)$)"
)
_COLOR_SPACE = re.compile(r"""color_space["']?\s*:\s*["']?(rgb|bgr)""", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """A published recogniser as read from a file.

    `layout` names the project whose naming the file follows; `preprocessing` is that project's; `dropped`
    lists the keys that are no part of a backbone (a classification head, for example) and were left out on
    purpose.
    """

    path: Path
    sha256: str
    layout: str
    backbone: Backbone
    preprocessing: Preprocessing
    dropped: tuple[str, ...]


class MismatchError(CheckpointError):
    """A state_dict that does not fit: which keys are missing, unexpected, mis-shaped or not finite."""

    def __init__(
        self,
        what: str,
        *,
        missing: list[str],
        unexpected: list[str],
        misshaped: list[str],
        not_finite: list[str],
    ) -> None:
        self.missing, self.unexpected = missing, unexpected
        self.misshaped, self.not_finite = misshaped, not_finite
        findings = {
            "missing": missing,
            "unexpected": unexpected,
            "mis-shaped": misshaped,
            "not finite": not_finite,
        }
        lines = [f"{kind} ({len(keys)}): {_some(keys)}" for kind, keys in findings.items() if keys]
        super().__init__("\n  ".join([f"{what}; nothing was loaded", *lines]))


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Load a published recogniser; its architecture is read from the names and shapes in the file.

    Understands the naming of TFace, AdaFace (`state_dict`, prefix `model.`), arcface_torch (`backbone.pth`,
    `model.pt`), CVLface (prefix `net.`), MobileFaceNet_Pytorch (112x96), LightCNN, and the clients of
    DuetFace and PRO-Face C; each bare or wrapped, with or without the prefix of DistributedDataParallel, from
    PyTorch files or safetensors, in any float type. The backbone comes back in float32, in evaluation mode,
    on the CPU. Raises CheckpointError, with every missing, unexpected and mis-shaped key at once, rather than
    loading half.
    """
    path = Path(path)
    state, wrappers = read_state_dict(path)
    state, prefixes, dropped = _strip(state)
    layout = find_layout(state, path.name)
    name, preprocessing = _convention(layout, prefixes, path)
    state = layout.convert(state)
    backbone = infer_backbone(state, path.name)
    load_state(backbone, state, f"{path.name} ({name} naming) does not fit {backbone.name}")
    return Checkpoint(
        path=path,
        sha256=sha256_file(path),
        layout=name + "".join(f", under {wrapper!r}" for wrapper in wrappers),
        backbone=backbone.eval(),
        preprocessing=replace(preprocessing, size=backbone.input_size, source=f"{name} convention"),
        dropped=dropped,
    )


def load_state(network: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Fill `network` with `state` in float32, or raise MismatchError that opens with `what` and fill nothing.

    A missing `num_batches_tracked` is no fault: old checkpoints lack it, and it has no influence on
    evaluation.
    """
    expected = network.state_dict()
    state = dict(state)
    for key, value in expected.items():
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=value.dtype)
    shared = [key for key in expected if key in state]
    findings = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "misshaped": [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in shared
            if state[key].shape != expected[key].shape
        ],
        "not_finite": [key for key in shared if state[key].is_floating_point() and not state[key].isfinite().all()],
    }
    if any(findings.values()):
        raise MismatchError(what, **findings)
    typed = {key: state[key].to(value.dtype).contiguous() for key, value in expected.items()}
    network.load_state_dict(typed, assign=True)


def _strip(state: State) -> tuple[State, tuple[str, ...], tuple[str, ...]]:
    """Remove heads and the prefixes that all other keys share; returns the rest, the prefixes and the removed keys."""
    dropped = tuple(key for key in state if _BESIDE.match(key))
    state = {key: value for key, value in state.items() if not _BESIDE.match(key)}
    prefixes: list[str] = []
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        prefixes.append(prefix)
    return state, tuple(prefixes), dropped


def _convention(layout: CheckpointLayout, prefixes: tuple[str, ...], path: Path) -> tuple[str, Preprocessing]:
    """Project that wrote the file, and its preprocessing; prefixes distinguish AdaFace and CVLface from TFace."""
    if layout.name == "TFace" and "net." in prefixes:
        return "CVLface", replace(layout.preprocessing, channel_order=_cvlface_channel_order(path))
    if layout.name == "TFace" and "model." in prefixes:
        # AdaFace reads images with OpenCV and keeps their channel order, in training and in its demonstration
        return "AdaFace", replace(layout.preprocessing, channel_order="bgr")
    return layout.name, layout.preprocessing


def _cvlface_channel_order(path: Path) -> ChannelOrder:
    """Read `color_space` from the settings that CVLface stores beside its weights; else RGB, its default."""
    for name in ("model.yaml", "config.json"):
        settings = path.with_name(name)
        if settings.is_file() and (found := _COLOR_SPACE.search(settings.read_text(errors="replace"))):
            return "bgr" if found[1].upper() == "BGR" else "rgb"
    return "rgb"


def _some(keys: list[str]) -> str:
    rest = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
