"""SlerpFace: templates rotated towards noise, with dimensions dropped, on top of any method (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ppfr.methods.common.audit_hooks import Hypothesis, draw_seed
from ppfr.methods.common.graph import NoGraph, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option
from ppfr.methods.common.payload import PayloadSchema
from ppfr.methods.common.registry import method_class, register
from ppfr.methods.common.stage import Stage
from ppfr.transforms.template import TemplateKey, protect_template
from ppfr.util.errors import MethodError


class SlerpFaceOptions(MethodOptions):
    """Settings of SlerpFace."""

    base: str = Field("arcface", description="the method whose embeddings are protected")
    base_options: dict[str, Any] = Field(default_factory=dict, description="that method's own settings")
    share: float = payload_option(
        (0.7, 0.5, 0.9), "how far a template is rotated towards noise: 0 not at all, 1 nothing is left", ge=0, lt=1
    )
    groups: int = payload_option([8], "groups of dimensions, each of which loses its share", ge=1)
    dropped: float = payload_option((0.25, 0.0, 0.5), "share of each group's dimensions that is dropped", ge=0, lt=1)
    seed: int = payload_option([0], "of the noise and of the dropped dimensions; a new one revokes all templates")


@register
class SlerpFace(Method):
    """Revocable templates by spherical interpolation to noise and group-wise dropout (Zhong et al., AAAI 2025).

    A wrapper: client, payload and training are those of the method `base`; what `embed` gives is its embedding, rotated
    towards the noise of a key and without some dimensions. So it is trained, compared and attacked like any other
    method, and the templates that an attacker steals are the protected ones. It protects what is stored, not what
    travels: that is up to `base`.

    The key inverts the rotation of the dimensions that were kept; store it apart from the templates.
    """

    info = MethodInfo(
        name="slerpface",
        title="SlerpFace",
        paper="Zhong et al., SlerpFace: Face Template Protection via Spherical Linear Interpolation, AAAI 2025",
        departures=(
            "groups and the dimensions that they drop are drawn by the key (the paper learns them); one key for the "
            "whole deployment"
        ),
    )
    Options = SlerpFaceOptions
    options: SlerpFaceOptions

    def __init__(self, options: SlerpFaceOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        cls = method_class(options.base)
        if cls is SlerpFace:
            raise MethodError("slerpface: base is 'slerpface' itself; give the method whose embeddings it protects")
        self.base = cls(cls.Options.parse(options.base_options, options.base), backbone, generator)
        # which secrets a client has is up to the base
        self.info = replace(type(self).info, secrets=self.base.info.secrets)
        self.input_size = self.base.input_size
        self.client, self.server = self.base.client, self.base.server
        self.key = TemplateKey.draw(
            self.base.embedding_size,
            torch.Generator().manual_seed(options.seed),
            groups=options.groups,
            dropped=options.dropped,
        )

    @property
    def schema(self) -> PayloadSchema:
        return PayloadSchema(self.info.name, self.base.schema.tensors)

    @property
    def embedding_size(self) -> int:
        return self.base.embedding_size

    def redeployed(self, seed: int) -> Self:
        """The same system under another template key; its weights, its client and the client's secrets stay."""
        return self.with_options(seed=draw_seed(torch.Generator().manual_seed(seed)))

    def remarks(self) -> list[str]:
        """States the number of kept dimensions and the method whose payload travels."""
        kept = int(self.key.kept.sum())
        return [
            f"protects stored templates, {kept} of {len(self.key.kept)} dimensions kept; what travels is the payload "
            f"of {self.base.info.name}",
            *super().remarks(),
            *self.base.remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.base._protect(images, generator)

    def protect_graph(self) -> ProtectGraph | NoGraph:
        """The base's."""
        return self.base.protect_graph()

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return protect_template(self.base._embed(tensors).float(), self.key, self.options.share)

    def hypotheses(self) -> list[Hypothesis]:
        return self.base.hypotheses()

    def weakened(self) -> Hypothesis | None:
        return self.base.weakened()

    def secrets(self) -> dict[str, Tensor]:
        return self.base.secrets()

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        self.base.set_secrets(secrets)

    def drop_secrets(self) -> None:
        self.base.drop_secrets()

    def stages(self) -> list[Stage]:
        """Those of the base: it learns as if nothing were done to its embeddings."""
        return self.base.stages()
