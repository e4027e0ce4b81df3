"""ArcFace and ArcFace-FD: the unprotected anchors of every comparison."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ppfr.methods.common.graph import ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import ChannelServer, server_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage
from ppfr.transforms import block_dct


class _Unprotected(Method):
    """A deterministic client and a plain recogniser."""

    client_channels: ClassVar[int]
    meaning: ClassVar[str]
    scaled: ClassVar[bool]
    server: ChannelServer

    def __init__(self, options: MethodOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = nn.Identity()
        self.server = ChannelServer(backbone.build(self.client_channels, generator), scaled=self.scaled)

    @property
    def schema(self) -> PayloadSchema:
        shape = (self.client_channels, *self.input_size)
        return PayloadSchema(self.info.name, {"channels": TensorSpec(shape, self.meaning, block_dct=self.scaled)})

    def protect_graph(self) -> ProtectGraph:
        return ProtectGraph(lambda images: self._protect(images, torch.Generator()))

    def stages(self) -> list[Stage]:
        return [server_stage(self.server, self._protect)]


@register
class ArcFace(_Unprotected):
    """The RGB baseline: the clear image travels (Deng et al., CVPR 2019)."""

    info = MethodInfo(
        name="arcface",
        title="ArcFace (RGB image, unprotected)",
        paper="Deng et al., ArcFace, CVPR 2019",
        protects=False,
    )
    client_channels = 3
    meaning = "the image itself, RGB in [-1, 1]"
    scaled = False

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"channels": images.float()}


@register
class ArcFaceFD(_Unprotected):
    """The frequency-domain baseline: all 192 block-DCT channels travel (Mi et al., DuetFace, ACM MM 2022)."""

    info = MethodInfo(
        name="arcface-fd",
        title="ArcFace-FD (all 192 DCT channels, unprotected)",
        paper="Mi et al., DuetFace, ACM MM 2022, section 4.2 (baseline)",
        protects=False,
        departures="channels are divided by their root mean square on the training set before the first layer",
    )
    client_channels = 192
    meaning = "all 64 frequencies of Y, Cb, Cr, colour-major"
    scaled = True

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"channels": block_dct(images).float().flatten(1, 2)}
