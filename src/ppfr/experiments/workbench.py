"""Training of several methods on the same faces under the same teacher, each once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ppfr.data.faceset import FaceSet
from ppfr.data.images import FACE_SIZE
from ppfr.data.sources import open_splits
from ppfr.methods import Method, create
from ppfr.methods.common.files import load_method
from ppfr.networks import Preprocessing, Recogniser
from ppfr.recipes.recipe import Recipe, deep_merge, load_recipe
from ppfr.training.distillation import teacher_targets
from ppfr.training.loop import run_record, train
from ppfr.training.run import Run
from ppfr.util.errors import MethodError
from ppfr.util.files import sha256_file
from ppfr.util.tensorfiles import write_tensors


@dataclass
class Workbench:
    """One source of faces and one profile of recipes; runs go to `runs`, teachers' embeddings to `cache`.

    A run that is finished is loaded, one that was stopped goes on.
    """

    data: str
    runs: Path
    cache: Path
    profile: str = "quick"
    seed: int = 0
    strict: bool = False
    device: str = "cpu"
    _opened: dict[int, tuple[FaceSet, FaceSet]] = field(default_factory=dict, init=False, repr=False)

    def splits(self, size: int = FACE_SIZE) -> tuple[FaceSet, FaceSet]:
        """Training and test faces at the size that a method wants, opened once."""
        if size not in self._opened:
            self._opened[size] = open_splits(self.data, size=size, strict=self.strict, seed=self.seed)
        return self._opened[size]

    def train_teacher(self, recipe: str, run: str) -> Recogniser:
        """Train an unprotected method on the labels alone into the folder `run`, as a teacher for the others."""
        method = self.train(recipe, None, run=run)
        return recogniser_of(method, Run(self.runs / run).model_file)

    def train(
        self,
        recipe: str | Path,
        teacher: Recogniser | None,
        *,
        run: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Method:
        """Train by a recipe into the folder `run`, by default the recipe's name; returns the trained method.

        A teacher's architecture, width and embedding size are taken over where the recipe leaves the backbone open.
        """
        changes = deep_merge(overrides or {}, {"seed": self.seed})
        chosen = load_recipe(recipe, profile=self.profile, taught=teacher is not None, overrides=changes)
        architecture = None
        if teacher is not None and teacher.backbone is not None:
            architecture = teacher.architecture
            if chosen.backbone.name == "auto":
                like = {"width": teacher.backbone.width, "embedding_size": teacher.embedding_size}
                changes = deep_merge({"backbone": like}, changes)
                chosen = load_recipe(recipe, profile=self.profile, taught=True, overrides=changes)
        faces, _ = self.splits(chosen.backbone_spec(architecture).image_size[0])
        return self._train(Run(self.runs / (run or Path(recipe).stem)), chosen, architecture, faces, teacher)

    def _train(
        self, run: Run, recipe: Recipe, architecture: str | None, faces: FaceSet, teacher: Recogniser | None
    ) -> Method:
        if run.finished:
            run.begin(recipe, run_record(recipe.method, faces, teacher), resume=True)
            return load_method(run.folder).to(self.device)
        method = create(recipe.method, recipe.backbone_spec(architecture), recipe.seed, **recipe.options)
        return train(
            method,
            recipe,
            faces,
            run,
            teacher=teacher,
            targets=None if teacher is None else self._targets(teacher, faces),
            resume=run.recipe_file.exists(),
            device=self.device,
        )

    def _targets(self, teacher: Recogniser, faces: FaceSet) -> Tensor:
        """The teacher's embeddings of the training faces: every method needs the same."""
        names = hashlib.sha256(json.dumps(faces.names).encode()).hexdigest()
        key = hashlib.sha256(
            f"{teacher.sha256} {teacher.preprocessing} {faces.name} {faces.size} {names}".encode()
        ).hexdigest()
        path = self.cache / f"targets-{key[:16]}.safetensors"
        if not path.exists():
            targets = teacher_targets(teacher, faces)
            write_tensors(path, {"targets": targets})
        return load_file(path)["targets"]


def recogniser_of(method: Method, file: Path) -> Recogniser:
    """The network of a trained unprotected method and its file as a recogniser.

    Raises MethodError for a method that embeds payloads instead of images.
    """
    backbone = getattr(method.server, "backbone", None)
    if method.info.protects or backbone is None:
        raise MethodError(
            f"{method.info.name} embeds payloads, not images, so it cannot serve as a recogniser (teacher or judge); "
            "give an unprotected method"
        )
    return Recogniser(
        name=f"{method.info.name} run",
        sha256=sha256_file(file),
        architecture=backbone.name,
        embedding_size=backbone.embedding_size,
        preprocessing=Preprocessing(source="ppfr run"),
        network=backbone,
    )


__all__ = ["Workbench", "recogniser_of"]
