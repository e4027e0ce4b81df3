"""Losses of a stage: distillation from a teacher, margin heads over identities, and the method's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.data.faceset import FaceSet
from ppfr.data.multi_dataset import JointFaces, split_batch
from ppfr.distributed.global_batch import GlobalBatch, rand
from ppfr.distributed.process_group import Ranks
from ppfr.heads import Head, ShardedHead, build_head
from ppfr.methods import Mixture, Stage
from ppfr.recipes.recipe import HeadSettings, StageSettings
from ppfr.training.distillation import Distillation
from ppfr.util.errors import RecipeError


def build_heads(
    faces: FaceSet, settings: HeadSettings, size: int, ranks: Ranks, generator: torch.Generator
) -> dict[str, nn.Module]:
    """One margin head over the identities of a set, or one for each of several data sets, by name."""
    if isinstance(faces, JointFaces):
        return {
            f"head-{at}": _build_head(settings, size, len(member.faces.identities), ranks, generator)
            for at, member in enumerate(faces.members)
        }
    return {"head": _build_head(settings, size, len(faces.identities), ranks, generator)}


def _build_head(
    settings: HeadSettings, size: int, classes: int, ranks: Ranks, generator: torch.Generator
) -> Head | ShardedHead:
    if settings.sample_rate < 1 or (settings.sharded and ranks.several):
        return ShardedHead(
            settings.name,
            embedding_size=size,
            classes=classes,
            ranks=ranks,
            sample_rate=settings.sample_rate,
            generator=generator,
            **settings.options,
        )
    head = build_head(settings.name, embedding_size=size, classes=classes, generator=generator, **settings.options)
    head.ranks = ranks
    return head


class StageLosses:
    """The forward pass of a stage and its weighted losses.

    `parts` holds all that learns: the stage's module, the margin heads, and the projection of the distillation.
    `targets` (N,D) are the teacher's embeddings of all images of `faces`; without them nothing is distilled. `heads`
    are those of the stage before, for a stage that continues them; with `resumes` a checkpoint will fill them. Raises
    RecipeError for a stage without any loss, and for one that continues heads that do not exist.
    """

    def __init__(
        self,
        stage: Stage,
        settings: StageSettings,
        faces: FaceSet,
        targets: Tensor | None,
        ranks: Ranks,
        device: torch.device,
        generator: torch.Generator,
        heads: Mapping[str, nn.Module] | None,
        resumes: bool,
    ) -> None:
        self.stage, self.settings, self.faces, self.ranks, self.device = stage, settings, faces, ranks, device
        self.targets = None if targets is None else targets.to(device)
        self.distil_weight = settings.losses.distil if targets is not None else 0.0
        self.margin_weight = settings.losses.margin
        if self.distil_weight == 0 and self.margin_weight == 0:
            raise RecipeError(
                f"stage {stage.name!r}: losses.distil needs a teacher and losses.margin is 0, so nothing would be "
                "learned; give --teacher FILE or --set training.losses.margin=1"
            )
        parts: dict[str, nn.Module] = {"stage": stage.module}
        if self.margin_weight:
            if stage.continues_head and not heads and not resumes:
                raise RecipeError(
                    f"stage {stage.name!r} continues the head of the stage before it, which had none; train both "
                    "stages in one run with losses.margin above 0"
                )
            fresh = None if stage.continues_head and heads else settings.head
            size = stage.embedding_size
            parts |= heads or {} if fresh is None else build_heads(faces, fresh, size, ranks, generator)
        if self.distil_weight:
            assert targets is not None
            parts["distillation"] = Distillation(stage.embedding_size, targets.shape[1], generator)
        self.parts = nn.ModuleDict(parts).to(device)
        self.batch = GlobalBatch(ranks)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The margin heads by name; none without a margin loss."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Head | ShardedHead)}

    def compute(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, seed: int, epoch: int, dtype: torch.dtype | None
    ) -> dict[str, Tensor]:
        """Losses by name over this rank's images (B,3,H,W), those of sharded heads over the images of all ranks.

        Every draw follows from `seed`, which all ranks share; the network computes in `dtype`, None for float32.
        `epoch` decides the rate of dropout on the embedding.
        """
        self.batch.rows = len(images)
        draws = self.batch.generator(seed, self.device)
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            # dropout layers know only the global generator
            torch.manual_seed(seed)
            outcome = self.stage.forward(images, labels, draws)
            embedding = outcome.embedding.float()
            if self.margin_weight and self.settings.dropout is not None:
                keep = 1.0 - self.settings.dropout.rate(epoch)
                kept = rand(embedding.shape, draws, self.device) < keep
                embedding = embedding * kept / keep
        losses = dict(outcome.losses)
        if self.distil_weight:
            assert self.targets is not None
            wanted = self.targets[indices.to(self.device)]
            if outcome.mixture is not None:
                wanted = (outcome.mixture.weights[..., None] * wanted[outcome.mixture.rows]).sum(1)
            losses["distil"] = self.distil_weight * self.parts["distillation"](outcome.embedding, wanted)
        if self.margin_weight:
            losses["margin"] = self.margin_weight * self._margin_loss(embedding, labels, outcome.mixture, seed)
        return losses

    def _margin_loss(self, embedding: Tensor, labels: Tensor, mixture: Mixture | None, seed: int) -> Tensor:
        """Cross entropy of the margin head, or the weighted sum over the heads of several data sets."""
        if not isinstance(self.faces, JointFaces):
            return self._head_loss("head", embedding, labels, mixture, seed)
        if mixture is not None:
            raise RecipeError(f"stage {self.stage.name!r} mixes images of a batch; that needs a single data set")
        members = self.faces.members
        sizes = split_batch([member.share for member in members], len(labels))
        parts = zip(members, torch.split(embedding, sizes), torch.split(labels, sizes), strict=True)
        terms = [
            member.weight * self._head_loss(f"head-{at}", own, people - member.first_person, None, seed + at)
            for at, (member, own, people) in enumerate(parts)
        ]
        return torch.stack(terms).sum()

    def _head_loss(self, name: str, embedding: Tensor, labels: Tensor, mixture: Mixture | None, seed: int) -> Tensor:
        """Cross entropy of one head; of a mixture the weighted sum over the people in it."""
        weights = None
        if mixture is not None:
            people = mixture.rows.shape[1]
            labels, weights = labels[mixture.rows].flatten(), people * mixture.weights.flatten()
            embedding = embedding.repeat_interleave(people, 0)
        head = self.parts[name]
        if isinstance(head, ShardedHead):
            # each rank draws among its own classes
            classes = torch.Generator(self.device).manual_seed(seed * 65_537 + self.ranks.rank)
            loss: Tensor = head(embedding, labels, classes, weights)
            return loss
        if weights is None:
            return F.cross_entropy(head(embedding, labels), labels)
        return (weights * F.cross_entropy(head(embedding, labels), labels, reduction="none")).mean()
