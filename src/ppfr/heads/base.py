"""Base class of classification heads: class centres, and logits in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import MethodError, ShapeError

KERNEL_DEVIATION = 0.01


class Head(nn.Module, ABC):
    """A layer that turns embeddings and their labels into logits for cross entropy; used in training only.

    `kernel` is (embedding_size, classes), one column a class, under the name that TFace and AdaFace give
    it. Its values are normal with deviation 0.01, drawn from `generator`, by default one seeded with 0.
    `options` names the further arguments of the class. Raises MethodError.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, embedding_size: int, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if embedding_size < 1 or classes < 1:
            raise MethodError(f"embedding_size is {embedding_size} and classes {classes}; expected both at least 1")
        self.embedding_size = embedding_size
        self.classes = classes
        self.scale = 1.0
        # the ranks that share a batch: statistics are those of the whole batch
        self.ranks = Ranks()
        self.kernel = nn.Parameter(torch.empty(embedding_size, classes))
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.kernel, std=KERNEL_DEVIATION, generator=generator)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return logits (B, classes), margin and scale applied; mean cross entropy with `labels` is the loss.

        `embeddings` is (B, embedding_size), not normalised, any float type; `labels` int64 (B,). The logits
        are float32 (float64 for float64 embeddings) even under autocast: bf16 would round a scale of 64 to
        steps of a quarter. Raises ShapeError.
        """
        self.check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.logits(embeddings.to(self.kernel.dtype), labels)

    def check(self, embeddings: Tensor, labels: Tensor) -> None:
        """Raise ShapeError unless `forward` takes these."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ShapeError(f"embeddings have shape {tuple(embeddings.shape)}; expected (B, {self.embedding_size})")
        if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
            raise ShapeError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected torch.int64 ({len(embeddings)},), one for each embedding"
            )

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, classes) as `forward` returns them, from embeddings in the kernel's float type."""
        scores = self.scores(embeddings, self.kernel)
        return self.scale * self.penalise(scores, labels[:, None], embeddings)

    def penalise(self, scores: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Return the scores (B, classes) with the margin applied; `labels` is (B, 1)."""
        target = scores.gather(1, labels)
        self.observe(target, embeddings)
        return self.negatives(scores, target).scatter(1, labels, self.positives(target, embeddings))

    # --- the parts of `penalise`, for heads whose classes lie on several ranks -----------------------------------
    @abstractmethod
    def scores(self, embeddings: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Scores (B, n) of embeddings (B, D) against the columns of `kernel` (D, n), before any margin."""

    def observe(self, target: Tensor, embeddings: Tensor) -> None:
        """Move the head's running statistics, in training mode, by the labels' scores (B, 1) of the whole batch."""

    def positives(self, target: Tensor, embeddings: Tensor) -> Tensor:
        """The labels' scores (b, 1) with the margin applied."""
        return target

    def negatives(self, scores: Tensor, target: Tensor) -> Tensor:
        """Scores (B, n) as they count where they are not the label's; `target` (B, 1) are the labels' scores."""
        return scores


class MarginHead(Head):
    """A head on cosines: each label's cosine is lowered by a margin, then all are multiplied by `scale`."""

    options: ClassVar[tuple[str, ...]] = ("scale", "margin")
    default_margin = 0.5

    def __init__(
        self,
        *,
        embedding_size: int,
        classes: int,
        scale: float = 64.0,
        margin: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(embedding_size=embedding_size, classes=classes, generator=generator)
        margin = self.default_margin if margin is None else margin
        if scale <= 0 or margin < 0:
            raise MethodError(f"scale is {scale} and margin {margin}; expected scale > 0 and margin >= 0")
        self.scale = scale
        self.margin = margin

    def scores(self, embeddings: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return (F.normalize(embeddings) @ F.normalize(kernel, dim=0)).clamp(-1, 1)

    def extra_repr(self) -> str:
        return f"{self.embedding_size}, {self.classes}, scale={self.scale:g}, margin={self.margin:g}"
