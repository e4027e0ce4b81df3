"""What commands can measure: a trained method, or a public recogniser as the unprotected reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ppfr.cli.app import recogniser
from ppfr.evaluation.evaluate import Model
from ppfr.methods import Method
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.recipes.recipe import parse_overrides
from ppfr.util.errors import MethodError
from ppfr.util.files import sha256_file


def load_protected(path: Path, settings: Sequence[str] | None) -> Method:
    """A trained method; `settings` are KEY=VALUE changes of its payload."""
    method = load_method(path)
    return method.with_options(**parse_overrides(settings)) if settings else method


def load_model(path: Path, preprocessing: str | None, device: str, settings: Sequence[str] | None = None) -> Model:
    """A run folder or its model.safetensors as a method, a file of any other kind as a public recogniser."""
    if path.is_file() and path.suffix.lower() != ".safetensors":
        if settings:
            raise MethodError(f"--set {settings[0]}: {path.name} is a public recogniser; only methods have settings")
        known = recogniser(path, preprocessing)
        assert known is not None
        return known.to(device)
    return load_protected(path, settings).to(device)


def model_names(model: Model) -> tuple[str, str]:
    """The short name of a model and the one for headings."""
    if isinstance(model, Method):
        return model.info.name, model.info.title
    return model.name, f"{model.name} (unprotected)"


def identify_model(model: Model, file: Path, settings: list[str] | None) -> str:
    """Weights and settings of a model as a text, which bulk work compares before it goes on."""
    if isinstance(model, Method):
        weights = sha256_file(file / MODEL_FILE if file.is_dir() else file)
        return json.dumps({"method": model.info.name, "sha256": weights, "settings": sorted(settings or [])})
    return json.dumps({"recogniser": model.sha256, "preprocessing": str(model.preprocessing)})
