"""What every classification head has in common: class centres, and logits in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.errors import MethodError, ShapeError

KERNEL_DEVIATION = 0.01


class Head(nn.Module, ABC):
    """A layer that turns embeddings and their labels into logits for cross entropy; used in training only.

    `kernel` is (embedding_size, classes), one column a class, under the name that TFace and AdaFace give
    it. Its values are normal with deviation 0.01, drawn from `generator`, by default one seeded with 0.
    Raises MethodError.
    """

    def __init__(self, *, embedding_size: int, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if embedding_size < 1 or classes < 1:
            raise MethodError(f"embedding_size is {embedding_size} and classes {classes}; expected both at least 1")
        self.embedding_size = embedding_size
        self.classes = classes
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
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ShapeError(f"embeddings have shape {tuple(embeddings.shape)}; expected (B, {self.embedding_size})")
        if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
            raise ShapeError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected torch.int64 ({len(embeddings)},), one for each embedding"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.logits(embeddings.to(self.kernel.dtype), labels)

    @abstractmethod
    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute what `forward` returns, from embeddings in the kernel's float type."""


class MarginHead(Head):
    """A head on cosines: each label's cosine is lowered by a margin, then all are multiplied by `scale`."""

    def __init__(
        self,
        *,
        embedding_size: int,
        classes: int,
        scale: float = 64.0,
        margin: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(embedding_size=embedding_size, classes=classes, generator=generator)
        if scale <= 0 or margin < 0:
            raise MethodError(f"scale is {scale} and margin {margin}; expected scale > 0 and margin >= 0")
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = (F.normalize(embeddings) @ F.normalize(self.kernel, dim=0)).clamp(-1, 1)
        return self.scale * self.penalise(cosines, labels[:, None], embeddings)

    @abstractmethod
    def penalise(self, cosines: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Return the cosines (B, classes) with the margin applied; `labels` is (B, 1)."""

    def extra_repr(self) -> str:
        return f"{self.embedding_size}, {self.classes}, scale={self.scale:g}, margin={self.margin:g}"
