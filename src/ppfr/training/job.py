"""What all stages of one training share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppfr.data.faceset import FaceSet
from ppfr.distributed.process_group import Ranks
from ppfr.methods import Method
from ppfr.networks import Recogniser
from ppfr.recipes.recipe import Recipe
from ppfr.training.run import Run


@dataclass(frozen=True)
class TrainingJob:
    """A method to train, by which recipe, on which faces, and where: the same for all its stages.

    `targets` (N,D) are the teacher's embeddings of all images of `faces`.
    """

    method: Method
    recipe: Recipe
    faces: FaceSet
    run: Run
    teacher: Recogniser | None = None
    targets: Tensor | None = None
    ranks: Ranks = field(default_factory=Ranks)
    device: torch.device | str = "cpu"
