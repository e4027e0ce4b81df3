"""A run folder: the recipe, versions, metrics, a checkpoint to resume from, and in the end the model."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from ppfr.methods.common.files import MODEL_FILE
from ppfr.recipes.recipe import Recipe
from ppfr.util.errors import CheckpointError, RecipeError
from ppfr.util.files import atomic_path, atomic_write

_FORMAT = 1


@dataclass(frozen=True)
class Run:
    """The files of one training run."""

    folder: Path

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def record_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoint_file(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def finished(self) -> bool:
        """True when training ran to its end."""
        return self.model_file.is_file()

    def begin(self, recipe: Recipe, record: Mapping[str, Any], *, resume: bool) -> None:
        """Claim the folder for a recipe, or check that it was claimed for the same one.

        Raises RecipeError when the folder holds another run and `resume` is false, or when the recipe to resume is not
        the one the run began with, naming what differs.
        """
        if self.recipe_file.exists():
            if not resume:
                raise RecipeError(
                    f"{self.folder} already holds a run; add --resume to continue it, or choose another --out"
                )
            # settings that did not exist when the run began have their defaults
            begun = Recipe.model_validate(yaml.safe_load(self.recipe_file.read_text()))
            before, now = yaml.safe_load(begun.to_yaml()), yaml.safe_load(recipe.to_yaml())
            changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            if changed:
                raise RecipeError(
                    f"{self.folder} was begun with another recipe ({', '.join(changed)} differ); resume with the same "
                    "settings, or choose another --out"
                )
            old = json.loads(self.record_file.read_text()) if self.record_file.exists() else {}
            for key in ("data", "teacher"):
                if old.get(key) != record.get(key):
                    raise RecipeError(
                        f"{self.folder} was begun with {key} {old.get(key)}, not {record.get(key)}; "
                        "exact resume needs the same"
                    )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_record({**record, "versions": versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        atomic_write(self.recipe_file, recipe.to_yaml())

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace `run.json`."""
        atomic_write(self.record_file, json.dumps({"format": _FORMAT, **record}, indent=2) + "\n")

    def read_record(self) -> dict[str, Any]:
        """Content of `run.json`."""
        record: dict[str, Any] = json.loads(self.record_file.read_text())
        return record

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a failure, such as a full disk, leaves the old one and raises CheckpointError."""
        self.save_tensors(self.checkpoint_file.name, state)

    def save_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        """Write tensors and plain values to one file of the folder, as `save_checkpoint` does."""
        file = self.folder / name
        try:
            with atomic_path(file, mode=0o600) as path:
                torch.save(dict(state), path)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"could not write {file}: {error}; the previous checkpoint is untouched. "
                "Free some space and repeat the command with --resume"
            ) from error

    def drop_shards(self, keep: Collection[str] = ()) -> None:
        """Remove the files of class centres that no checkpoint names any more, and what killed writers left."""
        for pattern in ("checkpoint-*.pt", ".checkpoint*.part"):
            for file in self.folder.glob(pattern):
                if file.name not in keep:
                    file.unlink(missing_ok=True)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None before the first; raises CheckpointError when it cannot be read."""
        if not self.checkpoint_file.exists():
            return None
        return self.load_tensors(self.checkpoint_file.name)

    def load_tensors(self, name: str, *, mapped: bool = False) -> dict[str, Any]:
        """What `save_tensors` wrote; `mapped` tensors stay on disk until they are used. Raises CheckpointError."""
        file = self.folder / name
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            raise CheckpointError(
                f"{file} cannot be read: {error}; remove {self.checkpoint_file} to begin anew"
            ) from error
        return state

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with open(self.metrics_file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def keep_metrics_before(self, stage: int, step: int) -> None:
        """Drop lines written after the checkpoint at (stage, step): those steps will be taken again."""
        if self.metrics_file.exists():
            rows = [json.loads(line) for line in self.metrics_file.read_text().splitlines() if line.endswith("}")]
            kept = [row for row in rows if (row["stage_index"], row["step"]) <= (stage, step)]
            atomic_write(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))


def versions() -> dict[str, str]:
    """Versions of what computes a run, for its record."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("ppfr", "torch", "numpy", "safetensors", "opencv-python-headless", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
