"""The one abstraction: a client that protects, a payload that travels, a server that embeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import AuditHooks
from ppfr.methods.common.graph import NoGraph, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.payload import Payload, PayloadSchema
from ppfr.methods.common.stage import Stage
from ppfr.networks import Backbone
from ppfr.transforms.fresh import fresh_generator
from ppfr.util.errors import MethodError, ShapeError


class Method(AuditHooks, nn.Module, ABC):
    """A PPFR system: a client half, a server half and the stages that train them.

    Authors set `info` and `Options`, build `self.client` and `self.server`, and write `schema`, `_protect`, `_embed`
    and `stages`. `protect` and `embed` are sealed: they check what goes in and what comes out.
    """

    info: MethodInfo
    """Set on the class; an object may have its own, where it depends on its options. Lists read the class."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    client: nn.Module
    server: nn.Module
    input_size: tuple[int, int]

    def __init__(self, options: MethodOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        """Build both halves with fresh weights drawn from `generator`."""
        super().__init__()
        self.options = options
        self.backbone_spec = backbone
        self.input_size = backbone.image_size

    # --- what authors write -------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def schema(self) -> PayloadSchema:
        """Names, shapes and types of what leaves the client."""

    @abstractmethod
    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The client: images (B,3,H,W) in [-1,1] -> the payload's tensors."""

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The server: the payload's tensors -> embeddings (B,D), not normalised."""
        embedding: Tensor = self.server(tensors)
        return embedding

    @abstractmethod
    def stages(self) -> list[Stage]:
        """What is trained, in order."""

    def protect_graph(self) -> ProtectGraph | NoGraph:
        """The client as a graph, for runtimes without Python; it needs no secrets to be made, only to be run.

        The default is none, for a client whose author wrote no graph.
        """
        return NoGraph("its author wrote none")

    # --- sealed -------------------------------------------------------------------------------------------------
    def protect(self, images: Tensor, generator: torch.Generator | None = None) -> Payload:
        """Turn images (B,3,H,W) in [-1,1] into what may leave the device.

        Random draws come from `generator`; without one, as in a deployed client, from a `fresh_generator`, whose state
        nobody can search for. Raises ShapeError for images of another size, type or range.
        """
        check_images(images, self.input_size)
        if generator is None:
            generator = fresh_generator(images.device)
        return Payload(self.schema, self._protect(images, generator))

    def embed(self, payload: Payload) -> Tensor:
        """Compute embeddings (B,D), not normalised, from a payload alone; raises PayloadError for a foreign one."""
        self.schema.check(payload.tensors)
        return self._embed(payload.tensors)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`embed(protect(images))`, for those who hold both halves."""
        return self.embed(self.protect(images, generator))

    def with_options(self, **changes: Any) -> Self:
        """This system with other settings of its payload; it shares the weights and has the same secrets.

        Raises MethodError for options that are not among `Options.payload_settings()`, and for values out of range.
        """
        known = self.Options.payload_settings()
        foreign = sorted(changes.keys() - known.keys())
        if foreign:
            raise MethodError(
                f"{self.info.name}: {', '.join(foreign)} cannot change after training; "
                f"what can: {', '.join(known) or 'nothing'}"
            )
        options = self.Options.parse(self.options.model_dump() | changes, self.info.name)
        changed = type(self)(options, self.backbone_spec, torch.Generator().manual_seed(0))
        # a module that both halves share is filled under its first name
        changed.load_state_dict(self.own_tensors(), assign=True, strict=False)
        if self.info.secrets:
            changed.drop_secrets()
            # a server's copy has none to pass on
            with suppress(MethodError):
                changed.set_secrets(self.secrets())
        return changed.train(self.training)

    def own_tensors(self) -> dict[str, Tensor]:
        """The state dict with each tensor once: a module that client and server share goes by the name it got first."""
        state: dict[str, Tensor] = self.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        return {name: tensor for name, tensor in state.items() if first[id(tensor)] == name}

    @property
    def embedding_size(self) -> int:
        """Length D of an embedding."""
        for module in self.server.modules():
            if isinstance(module, Backbone):
                return module.embedding_size
        raise MethodError(f"{self.info.name}: the server holds no Backbone, so override `embedding_size`")

    def config(self) -> dict[str, Any]:
        """All that `create` needs to build this object again, except secrets; safe to store in a server's file."""
        hidden = self.Options.secret_fields()
        return {
            "method": self.info.name,
            "backbone": self.backbone_spec.to_dict(),
            "options": self.options.model_dump(mode="json", exclude=hidden),
        }


def check_images(images: Tensor, size: tuple[int, int] | None = None) -> None:
    """Raise ShapeError unless `images` is a floating (B,3,H,W) tensor within [-1,1] and of the size asked for."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images have shape {tuple(images.shape)}; expected (B, 3, height, width) RGB")
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        raise ShapeError(
            f"images are {images.shape[2]}x{images.shape[3]}; expected aligned crops of {size[0]}x{size[1]}"
        )
    if not images.is_floating_point():
        raise ShapeError(
            f"images have dtype {images.dtype}; expected floats in [-1, 1] (v / 127.5 - 1 of 8-bit values)"
        )
    if images.numel():
        low, high = (float(edge) for edge in torch.aminmax(images.detach()))
        if not (low >= -1.001 and high <= 1.001):
            raise ShapeError(
                f"images range over [{low:.4g}, {high:.4g}]; expected [-1, 1] (v / 127.5 - 1 of 8-bit values)"
            )


__all__ = ["Method", "check_images"]
