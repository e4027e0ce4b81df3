"""The one abstraction: a client that protects, a payload that travels, a server that embeds."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ppfr.methods.common.graph import NoGraph, ProtectGraph
from ppfr.methods.common.payload import Payload, PayloadSchema
from ppfr.networks import Backbone, build_backbone, default_input_size
from ppfr.transforms.fresh import fresh_generator
from ppfr.util.errors import MethodError, ShapeError
from ppfr.util.registry import Registry


class MethodOptions(BaseModel):
    """Settings of one method; unknown names and wrong types are refused, secret fields never reach a server file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def secret_fields(cls) -> set[str]:
        """Names of the options that would give a client's secret away."""
        return {
            name
            for name, declared in cls.model_fields.items()
            if isinstance(declared.json_schema_extra, dict) and declared.json_schema_extra.get("secret")
        }

    @classmethod
    def payload_settings(cls) -> dict[str, tuple[Any, ...]]:
        """Options that may change after training, because they touch the payload and no weight, with values to try.

        The first value is the one that loses least.
        """
        return {
            name: tuple(values)
            for name, declared in cls.model_fields.items()
            if isinstance(declared.json_schema_extra, dict)
            and isinstance(values := declared.json_schema_extra.get("payload"), list)
        }


def secret_option(default: Any, description: str) -> Any:
    """A pydantic field that is stored with no model and no recipe: it gives a secret away, or is needed only once."""
    return Field(default, description=description, json_schema_extra={"secret": True})


def payload_option(values: Sequence[Any], description: str, **limits: Any) -> Any:
    """A pydantic field that may change after training; `values` are worth comparing, the first is the default."""
    return Field(values[0], description=description, json_schema_extra={"payload": list(values)}, **limits)


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


@dataclass(frozen=True)
class Hypothesis:
    """A client with every secret and random draw fixed: what an attacker assumes after one guess.

    `apply` maps images (B,3,H,W) in [-1,1] to the payload's tensors; it is deterministic and differentiable. Where the
    payload holds whole numbers it gives the values before rounding.
    """

    name: str
    apply: Callable[[Tensor], dict[str, Tensor]]


@dataclass
class Mixture:
    """Which rows of the batch each embedding stands for, `rows` (B,k), and to what share, `weights` (B,k) of sum 1."""

    rows: Tensor
    weights: Tensor


@dataclass
class TrainingStep:
    """What a stage's forward pass gives the loop: embeddings (B,D) and further losses by name, already weighted.

    An embedding stands for its own row of the batch, unless `mixture` says otherwise.
    """

    embedding: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    mixture: Mixture | None = None


@dataclass
class TrunkInput:
    """A sample of what reaches a trunk's first layer (B,C,H,W), and which expert of a gated layer each row is for."""

    features: Tensor
    expert: Tensor | None = None


@dataclass
class Stage:
    """One step of a method's training: what learns, what it computes, and where a warm start may begin.

    `module` learns; the rest of the method stays frozen and in evaluation mode. `trunk` is the recogniser inside it
    whose weights may come from a teacher, and `trunk_input` shows the loop what that trunk's first layer sees; it,
    `calibrate` and `after_warm_start` run without gradients.
    `rate_scales` are factors on the learning rate of submodules or parameters of `module`, by name. With
    `continues_head` the margin head goes on as the previous stage left it instead of starting anew.
    """

    name: str
    module: nn.Module
    forward: Callable[[Tensor, Tensor, torch.Generator], TrainingStep]
    embedding_size: int
    trunk: Backbone | None = None
    trunk_input: Callable[[Tensor, torch.Generator], TrunkInput] | None = None
    calibrate: Callable[[Tensor, torch.Generator], None] | None = None
    after_warm_start: Callable[[Tensor, torch.Generator], None] | None = None
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    continues_head: bool = False
    sample: int = 0


class Method(nn.Module, ABC):
    """A PPFR system: a client half, a server half and the stages that train them.

    Authors set `info` and `Options`, build `self.client` and `self.server`, and write `schema`, `_protect`, `_embed`
    and `stages`. `protect` and `embed` are sealed: they check what goes in and what comes out.
    """

    info: ClassVar[MethodInfo]
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

    @abstractmethod
    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The server: the payload's tensors -> embeddings (B,D), not normalised."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """What is trained, in order."""

    def hypotheses(self) -> list[Hypothesis]:
        """Every client an attacker who knows this deployment must try; more than one where the client draws at random.

        The default holds for a client without draws. A client whose draws are too many to list gives none. Raises
        MethodError when the client's secrets are absent.
        """
        return [Hypothesis("client", lambda images: self._protect(images, torch.Generator(images.device)))]

    def weakened(self) -> Hypothesis | None:
        """This client with what protects taken away, for attacks to prove themselves on: noise off, draws fixed.

        An attack that fails here is not believed elsewhere. The default None leaves the choice to the audit, which lets
        the client write the clear image into tensors of the payload's shapes.
        """
        return None

    def protect_graph(self) -> ProtectGraph | NoGraph:
        """The client as a graph, for runtimes without Python; it needs no secrets to be made, only to be run.

        The default is none, for a client whose author wrote no graph.
        """
        return NoGraph("its author wrote none")

    def secrets(self) -> dict[str, Tensor]:
        """The client's secrets by name, as named in `info.secrets`; stored apart from the weights."""
        return {}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        """Take the secrets that `secrets()` gave; raises MethodError when they do not fit."""
        if secrets:
            raise MethodError(f"{self.info.name} has no secrets; got {sorted(secrets)}")

    def remarks(self) -> list[str]:
        """What a reader of this method's figures must know; the options may have a say in it."""
        return [self.info.departures] if self.info.departures else []

    def drop_secrets(self) -> None:
        """Forget the client's secrets: what remains can embed but not protect."""

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
        options = parse_options(type(self), self.options.model_dump() | changes)
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


_METHODS: Registry[type[Method]] = Registry("method", "ppfr.methods", MethodError)
_MethodType = TypeVar("_MethodType", bound=type[Method])


def register(cls: _MethodType) -> _MethodType:
    """Class decorator that makes a method known by `info.name`; raises MethodError for a name already taken.

    Paper and departures, written down once in `info`, join the docstring, so that `help` shows them too.
    """
    _METHODS.register(cls.info.name, cls)
    told = [f"Paper: {cls.info.paper}."]
    if cls.info.departures:
        told.append(f"Ours differs: {cls.info.departures}.")
    cls.__doc__ = "\n\n".join([inspect.cleandoc(cls.__doc__ or cls.info.title), *told])
    return cls


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    return _METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class registered under `name`; raises MethodError that lists the known names."""
    return _METHODS.find(name)


def create(
    name: str,
    backbone: str | BackboneSpec = "ir18",
    seed: int = 0,
    *,
    embedding_size: int | None = None,
    width: float = 1.0,
    **options: Any,
) -> Method:
    """Build an untrained method by name; `seed` fixes the initial weights, `options` are the method's own.

    Raises MethodError for an unknown method or option, naming each refused option and the ones that exist.
    """
    cls = method_class(name)
    spec = (
        backbone
        if isinstance(backbone, BackboneSpec)
        else BackboneSpec(backbone, embedding_size=embedding_size, width=width)
    )
    return cls(parse_options(cls, options), spec, torch.Generator().manual_seed(seed)).eval()


def parse_options(cls: type[Method], options: Mapping[str, Any]) -> MethodOptions:
    """Validate a method's options; raises MethodError that reports every problem at once."""
    try:
        return cls.Options.model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']} (got {problem['input']!r})"
            for problem in error.errors()
        )
        known = ", ".join(sorted(cls.Options.model_fields)) or "none"
        raise MethodError(f"{cls.info.name}: {problems}. Options: {known}") from error


def require_secrets(method: Method, secrets: Sequence[Tensor | None]) -> None:
    """Raise MethodError when a method that was loaded without its secrets is asked to protect."""
    if any(secret is None for secret in secrets):
        raise MethodError(
            f"{method.info.name}: the client's secrets ({', '.join(method.info.secrets)}) are absent, so it can embed "
            "but not protect; put the run's secrets.safetensors beside its model.safetensors"
        )


__all__ = [
    "BackboneSpec",
    "Hypothesis",
    "Method",
    "MethodInfo",
    "MethodOptions",
    "Mixture",
    "Stage",
    "TrainingStep",
    "TrunkInput",
    "check_images",
    "create",
    "method_class",
    "method_names",
    "payload_option",
    "register",
    "secret_option",
]
