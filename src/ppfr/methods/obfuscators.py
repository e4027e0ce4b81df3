"""Obfuscators: blurred, pixelated, blackened or shrunken images travel to a recogniser, as is commonly deployed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option
from ppfr.methods.common.parts import LevelsServer, server_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage
from ppfr.transforms.blur import EYES, GAUSSIAN_KERNEL, black_box, downscale, gaussian_blur, median_blur, pixelate
from ppfr.transforms.quantise import to_levels

# what each kind does when no strength is given
STRENGTHS = {"gaussian": 5.0, "median": 13.0, "pixelate": 7.0, "black-box": 1.0, "downscale": 7.0}


class ObfuscatorsOptions(MethodOptions):
    """Settings of the obfuscators."""

    kind: Literal["gaussian", "median", "pixelate", "black-box", "downscale"] = payload_option(
        ["gaussian", "median", "pixelate", "black-box", "downscale"], "what is done to the image"
    )
    strength: float | None = payload_option(
        [None],
        "gaussian: sigma in pixels (5); median: side of the window, odd (13); pixelate and downscale: side of a block "
        "in pixels (7); black-box: size of the bar, 1 covers the eyes (1)",
        gt=0,
    )
    train_on: Literal["clear", "obfuscated"] = Field(
        "clear", description="images the recogniser learns from: clear is a server that knows of no obfuscation"
    )

    @model_validator(mode="after")
    def _whole(self) -> ObfuscatorsOptions:
        strength = self.strength
        if strength is not None and self.kind in {"median", "pixelate", "downscale"} and strength != int(strength):
            raise ValueError(f"strength {strength:g} of {self.kind}: expected whole pixels")
        if strength is not None and self.kind == "median" and strength % 2 == 0:
            raise ValueError(f"strength {strength:g} of median: expected an odd number of pixels")
        return self


@register
class Obfuscators(Method):
    """A classic obfuscation in front of an unprotected recogniser (the baseline of McPherson et al. 2016).

    None of them is a protection against machines: blurred faces are recognised and restored. By default the recogniser
    is trained on clear images, as one that knows nothing of the obfuscation; `train_on: obfuscated` adapts it.
    """

    info = MethodInfo(
        name="obfuscators",
        title="Obfuscation (blur, median, mosaic, black box, low resolution)",
        paper="McPherson et al., Defeating Image Obfuscation with Deep Learning, arXiv 2016 (who break them)",
        departures="mosaic blocks show their mean (the reference of PRO-Face C picks a pixel)",
    )
    Options = ObfuscatorsOptions
    options: ObfuscatorsOptions
    server: LevelsServer

    def __init__(self, options: ObfuscatorsOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = nn.Identity()
        self.server = LevelsServer(backbone.build(3, generator))

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((3, *self.input_size), "the obfuscated image, RGB", torch.uint8)
        return PayloadSchema(self.info.name, {"image": spec})

    @property
    def strength(self) -> float:
        """The strength in use, in the units of the kind."""
        given = self.options.strength
        return STRENGTHS[self.options.kind] if given is None else given

    def remarks(self) -> list[str]:
        """States the obfuscation and its strength."""
        trained = f"recogniser trained on {self.options.train_on} images"
        return [f"{self.options.kind} of strength {self.strength:g}; {trained}", *super().remarks()]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": to_levels(self.obfuscate(images.float())).byte()}

    def obfuscate(self, images: Tensor) -> Tensor:
        """Obfuscate images (B,3,H,W) in [-1,1] by the chosen kind and strength, before rounding to 8 bits."""
        kind, strength = self.options.kind, self.strength
        if kind == "gaussian":
            return gaussian_blur(images, strength, max(GAUSSIAN_KERNEL, 2 * math.ceil(3 * strength) + 1))
        if kind == "median":
            return median_blur(images, strength)
        if kind == "pixelate":
            return pixelate(images, strength)
        if kind == "downscale":
            return downscale(images, strength)
        return black_box(images, _grown(EYES, strength))

    def protect_graph(self) -> NoGraph:
        return NoGraph("medians look up windows by value, and the other kinds choose their matrices by it")

    def hypotheses(self) -> list[Hypothesis]:
        """One, with values before rounding."""
        return [Hypothesis("client", lambda images: {"image": to_levels(self.obfuscate(images.float()), whole=False)})]

    def stages(self) -> list[Stage]:
        def clear(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return {"image": to_levels(images, whole=False)}

        return [server_stage(self.server, clear if self.options.train_on == "clear" else self._protect)]


def _grown(box: tuple[float, float, float, float], factor: float) -> tuple[float, float, float, float]:
    """A box scaled about its centre and cut off at the image's borders: top, left, bottom, right in 0..1."""
    top, left, bottom, right = box
    (middle, height), (centre, width) = ((top + bottom) / 2, bottom - top), ((left + right) / 2, right - left)
    return (
        max(0.0, middle - factor * height / 2),
        max(0.0, centre - factor * width / 2),
        min(1.0, middle + factor * height / 2),
        min(1.0, centre + factor * width / 2),
    )
