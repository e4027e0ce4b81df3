"""Weakened targets that every attack should break: the controls that show whether an attack works."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.stage import Stage
from ppfr.networks import Recogniser
from ppfr.util.errors import MethodError

IMAGE_IN_PAYLOAD = "the clear image in the payload's own shapes"


class _Control(Method):
    """A method without training or secrets that stands in for another one."""

    def __init__(self, target: Method, title: str) -> None:
        super().__init__(MethodOptions(), target.backbone_spec, torch.Generator())
        info = MethodInfo(f"weakened {target.info.name}", title, target.info.paper, protects=False)
        self.info = info
        self.input_size = target.input_size
        self.client = self.server = nn.Identity()

    def stages(self) -> list[Stage]:
        return []


class WeakenedPayload(_Control):
    """A method whose client hides nothing, or only what `Method.weakened` leaves; its payload has the same schema.

    Without a client of the method's own, the clear image is written into tensors of the payload's shapes.
    """

    def __init__(self, target: Method) -> None:
        own = target.weakened()
        self._weak = own or Hypothesis(IMAGE_IN_PAYLOAD, partial(write_image, specs=target.schema.tensors))
        super().__init__(target, self._weak.name)
        self._schema = PayloadSchema(self.info.name, target.schema.tensors)

    @property
    def schema(self) -> PayloadSchema:
        return self._schema

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return as_sent(self._weak.apply(images), self._schema)

    def hypotheses(self) -> list[Hypothesis]:
        return [self._weak]

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        raise MethodError(f"{self.info.name} has no server: it is there to be attacked at its payload")


class ClearTemplates(_Control):
    """A server that stores a public recogniser's embeddings of the clear images."""

    def __init__(self, target: Method, recogniser: Recogniser) -> None:
        super().__init__(target, f"templates of {recogniser.name}, unprotected")
        self._recogniser = recogniser

    @property
    def schema(self) -> PayloadSchema:
        return PayloadSchema(self.info.name, {"image": TensorSpec((3, *self.input_size), "the image in [-1,1]")})

    @property
    def embedding_size(self) -> int:
        return self._recogniser.embedding_size

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": images.float()}

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._recogniser.embed(tensors["image"])


def write_image(images: Tensor, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """The image itself in tensors of the given shapes, as floats; linear in the image.

    In a tensor with height and width each channel is one of the image's colours in turn, or its grey value in a single
    one, resized; in a vector it is as many pixels of a small image as fit, then zeros. Tensors of whole numbers hold
    0..127 of each.
    """
    written = {}
    for name, spec in specs.items():
        values = _as_planes(images, spec.shape) if len(spec.shape) >= 2 else _as_vector(images, spec.shape)
        written[name] = values if spec.dtype.is_floating_point else (values + 1) * 63.5
    return written


def _as_planes(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    *leading, height, width = shape
    channels = math.prod(leading)
    resized = images if images.shape[2:] == (height, width) else _resize(images, height, width)
    if channels == 1:
        return resized.mean(1).reshape(-1, *shape)
    colours = torch.arange(channels, device=images.device) % 3
    return resized[:, colours].reshape(-1, *shape)


def _as_vector(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    length = math.prod(shape)
    side = max(1, math.isqrt(max(1, length // 3)))
    flat = _resize(images, side, side).flatten(1)[:, :length]
    return F.pad(flat, (0, length - flat.shape[1])).reshape(-1, *shape)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


def as_sent(tensors: Mapping[str, Tensor], schema: PayloadSchema) -> dict[str, Tensor]:
    """Tensors of floats in the types of a schema; whole numbers are rounded."""
    sent = {}
    for name, spec in schema.tensors.items():
        tensor = tensors[name].detach()
        sent[name] = (tensor if spec.dtype.is_floating_point else tensor.round()).to(spec.dtype)
    return sent


def weakened(target: Method, recogniser: Recogniser | None, *, templates: bool) -> Method:
    """The weakened target on which an attack on `target` must succeed: at the payload, or at stored templates.

    Raises MethodError for templates without a recogniser to make some.
    """
    if not templates:
        return WeakenedPayload(target)
    if recogniser is None:
        raise MethodError(
            "the control of an attack on templates needs those of a public recogniser; give one as `recogniser`"
        )
    return ClearTemplates(target, recogniser)


__all__ = ["IMAGE_IN_PAYLOAD", "ClearTemplates", "WeakenedPayload", "as_sent", "weakened", "write_image"]
