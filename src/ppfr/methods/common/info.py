"""What a method is called and publishes, and which network its server runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ppfr.networks import Backbone, build_backbone, default_input_size


@dataclass(frozen=True)
class MethodInfo:
    """What the lists and reports say of a method."""

    name: str
    title: str
    paper: str
    protects: bool = True
    secrets: tuple[str, ...] = ()
    departures: str = ""


@dataclass(frozen=True)
class BackboneSpec:
    """Which network the server runs: a name of `ppfr.networks.backbone_names()` and its sizes."""

    name: str = "ir18"
    embedding_size: int | None = None
    width: float = 1.0
    input_size: tuple[int, int] | None = None

    def build(self, in_channels: int, generator: torch.Generator) -> Backbone:
        """Make the network with a first layer of `in_channels`; unset sizes take the network's own default."""
        return build_backbone(
            self.name,
            in_channels=in_channels,
            embedding_size=self.embedding_size,
            width=self.width,
            input_size=self.input_size,
            generator=generator,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(Height, width) of the square face crops that the network is for: 112x112 also for one that reads 112x96."""
        height, _ = self.input_size or default_input_size(self.name)
        return height, height

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a recipe or a file's header."""
        return {
            "name": self.name,
            "embedding_size": self.embedding_size,
            "width": self.width,
            "input_size": list(self.input_size) if self.input_size else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneSpec:
        """Read what `to_dict` wrote."""
        size = values.get("input_size")
        return cls(
            name=values["name"],
            embedding_size=values.get("embedding_size"),
            width=float(values.get("width", 1.0)),
            input_size=(int(size[0]), int(size[1])) if size else None,
        )


__all__ = ["BackboneSpec", "MethodInfo"]
