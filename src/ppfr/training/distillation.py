"""Distillation: the protected student learns a public recogniser's embeddings of the clear images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.distributed.process_group import Ranks
from ppfr.networks import Recogniser
from ppfr.util.progress import track

# images that are embedded at a time; bounds memory
_CHUNK = 64


@torch.no_grad()
def teacher_targets(teacher: Recogniser, faces: FaceSet, ranks: Ranks = Ranks()) -> Tensor:
    """Unit embeddings (N,D) float32 of all clear images by the teacher, mirrored views summed in.

    The mirrored view makes the target of an image and of its mirror image the same, and a better one than either.
    Ranks embed every `world`-th batch each and get all.
    """
    targets = torch.zeros(len(faces), teacher.embedding_size)
    starts = range(0, len(faces), _CHUNK)[ranks.rank :: ranks.world]
    for first in track(starts, f"teacher {teacher.name}"):
        rows = range(first, min(first + _CHUNK, len(faces)))
        images = to_tensor(faces.images(rows))
        targets[rows.start : rows.stop] = F.normalize(teacher.embed(images, flip=True))
    return ranks.sum_on_cpu_(targets)


class Distillation(nn.Module):
    """1 - cosine between a student's embeddings (B,S) and their targets (B,D).

    When S differs from D, a learned projection of the student's embedding meets the target and is thrown away after
    training: inner products of student embeddings then follow the teacher's only up to that projection.
    """

    def __init__(self, student_size: int, teacher_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.projection = (
            nn.Identity() if student_size == teacher_size else nn.Linear(student_size, teacher_size, False)
        )
        if isinstance(self.projection, nn.Linear):
            nn.init.orthogonal_(self.projection.weight, generator=generator)

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        return 1.0 - F.cosine_similarity(self.projection(embedding.float()), target.float()).mean()
