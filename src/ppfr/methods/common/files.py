"""Methods on disk: weights for anyone who runs a server, secrets apart for those who run clients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ppfr.methods.common.info import BackboneSpec
from ppfr.methods.common.method import Method
from ppfr.methods.common.registry import create
from ppfr.util.errors import CheckpointError, MethodError
from ppfr.util.tensorfiles import write_tensors

MODEL_FILE = "model.safetensors"
SECRETS_FILE = "secrets.safetensors"
_FORMAT = "1"


def save_method(method: Method, folder: Path | str, *, trained: Sequence[str] | None = None) -> None:
    """Write `model.safetensors` (weights and settings, no secret) and any secrets to `secrets.safetensors` (0600).

    `trained` names the stages that were trained, if not all of them were.
    """
    folder = Path(folder)
    missing = [] if trained is None else [stage.name for stage in method.stages() if stage.name not in trained]
    header = {"ppfr-model": _FORMAT, "config": json.dumps(method.config())}
    if missing:
        header["untrained"] = json.dumps(missing)
    write_tensors(folder / MODEL_FILE, method.own_tensors(), header)
    secrets = method.secrets()
    if secrets:
        about = {"ppfr-secrets": _FORMAT, "method": method.info.name}
        write_tensors(folder / SECRETS_FILE, secrets, about, mode=0o600)


def load_method(run_or_file: Path | str, *, expect: str | None = None, partial: bool = False) -> Method:
    """Read a trained method from a run folder or its `model.safetensors`, in evaluation mode on the CPU.

    Secrets are read from `secrets.safetensors` beside it; without that file the method embeds but refuses to protect.
    Raises CheckpointError for a missing or foreign file, weights that do not fit, another method than `expect`, or,
    unless `partial`, a run that trained only some of its stages.
    """
    path = Path(run_or_file)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a run folder that holds {MODEL_FILE} (training may not have finished: "
            "repeat `ppfr train` with --resume)"
        )
    header = _read_header(path)
    config = header["config"]
    if "untrained" in header and not partial:
        raise CheckpointError(
            f"{path}: the stages {header['untrained']} were not trained in this run; go on from it with "
            f"`ppfr train {config['method']} --set start_from={path.parent}` and only_stages"
        )
    if expect is not None and config["method"] != expect:
        raise CheckpointError(f"{path} holds a {config['method']!r} model; expected {expect!r}")
    try:
        method = create(config["method"], BackboneSpec.from_dict(config["backbone"]), **config["options"])
    except (MethodError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings do not build a method: {error}") from error
    load_weights(method, load_file(path), str(path))
    method.drop_secrets()
    secrets = path.with_name(SECRETS_FILE)
    if method.info.secrets and secrets.is_file():
        method.set_secrets(read_secrets(secrets))
    return method.eval()


def read_secrets(path: Path) -> dict[str, Tensor]:
    """The tensors of a `secrets.safetensors`; raises CheckpointError for a file that is damaged or none."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a client's secrets: {error}; copy it again from where it was made, or remove "
            "it: the method then embeds and does not protect"
        ) from error
    return tensors


def load_weights(method: Method, weights: Mapping[str, Any], origin: str) -> None:
    """Fill a method from a state dict, or raise CheckpointError with every missing, unexpected and mis-shaped name."""
    own = method.own_tensors()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshaped = [
        f"{name}: {tuple(weights[name].shape)} where {tuple(own[name].shape)} is expected"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or unexpected or misshaped:
        raise CheckpointError(
            f"{origin} does not fit {method.info.name}; nothing was loaded. Missing: {missing or 'none'}; "
            f"unexpected: {unexpected or 'none'}; mis-shaped: {misshaped or 'none'}"
        )
    # what is shared is filled under its first name
    method.load_state_dict(dict(weights), strict=False)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
        if header.get("ppfr-model") != _FORMAT:
            raise CheckpointError(
                f"{path} is no ppfr model (its header says {header.get('ppfr-model')!r}); for a recogniser of another "
                "project use `load_checkpoint` or --teacher"
            )
        values = {name: json.loads(header[name]) for name in ("config", "untrained") if name in header}
        config = values["config"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a ppfr model: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its settings are {type(config).__name__}, expected a mapping")
    return values
