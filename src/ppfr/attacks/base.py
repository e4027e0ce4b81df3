"""What an attacker is given, what an attack must return, and the door that checks both."""

from __future__ import annotations

import importlib
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ppfr.errors import AttackError, ShapeError
from ppfr.methods.base import Method, check_images
from ppfr.methods.payload import Payload

Progress = Callable[[int, int], None]
"""Called with how many payloads are done, and how many there are."""


class Sees(StrEnum):
    """What reaches the attacker."""

    PAYLOAD = "one payload"
    PAYLOADS_OF_IMAGE = "several payloads of one image"
    PAYLOADS_OF_PERSON = "several payloads of one person"
    TEMPLATES = "stored templates"


class Knows(StrEnum):
    """How much of the system the attacker knows; each step includes those before it."""

    NOTHING = "nothing"
    METHOD = "the method"
    PARAMETERS = "the method's public parameters"
    SECRETS = "the deployment's secrets"


class Has(StrEnum):
    """What else the attacker holds."""

    FACES = "public faces"
    PAIRS = "payload/image pairs"
    QUERIES = "query access to the client"


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker sees, knows and has; printed beside every figure an attack gives.

    `pairs` is how many payload/image pairs there are; it is positive exactly when `has` holds `Has.PAIRS`.
    """

    sees: Sees = Sees.PAYLOAD
    knows: Knows = Knows.NOTHING
    has: frozenset[Has] = frozenset()
    pairs: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "has", frozenset(self.has))
        if (self.pairs > 0) != (Has.PAIRS in self.has) or self.pairs < 0:
            raise AttackError(
                f"threat model has pairs={self.pairs} and has={sorted(self.has)}; "
                "give a positive number of pairs together with Has.PAIRS, or neither"
            )

    def __str__(self) -> str:
        held = [f"{self.pairs} {item}" if item is Has.PAIRS else str(item) for item in Has if item in self.has]
        return f"sees {self.sees}; knows {self.knows}; has {' and '.join(held) or 'no data'}"

    def covers(self, needed: ThreatModel) -> bool:
        """Whether this attacker can run whatever `needed` describes."""
        return not self.lacks(needed)

    def lacks(self, needed: ThreatModel) -> list[str]:
        """What `needed` asks for and this attacker has not, in words; empty when covered."""
        missing = []
        several = (Sees.PAYLOADS_OF_IMAGE, Sees.PAYLOADS_OF_PERSON)
        if self.sees != needed.sees and not (needed.sees is Sees.PAYLOAD and self.sees in several):
            missing.append(f"sight of {needed.sees}")
        steps = list(Knows)
        if steps.index(self.knows) < steps.index(needed.knows):
            missing.append(f"knowledge of {needed.knows}")
        missing += [str(item) for item in Has if item in needed.has - self.has]
        if Has.PAIRS in self.has and self.pairs < needed.pairs:
            missing.append(f"{needed.pairs} pairs instead of {self.pairs}")
        return missing


class AttackOptions(BaseModel):
    """Settings of one attack; unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Recovery:
    """What an attack made of a payload, one row an image.

    `images` (B,3,H,W) RGB in [0,1]; `hypotheses` names the guess of the client's draws that was kept for each row;
    `misfit` (B,) is how far the payload of the recovered image is from the observed one, as a fraction of the payload's
    deviation from that of an average face; `tensors` are the payload tensors that were used and `prior` says what the
    attacker believed about faces beforehand. The door adds `attack`, `target`, `threat` and `seconds`.
    """

    images: Tensor
    hypotheses: tuple[str, ...] = ()
    misfit: Tensor | None = None
    tensors: tuple[str, ...] = ()
    prior: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    attack: str = ""
    target: str = ""
    threat: ThreatModel = ThreatModel()
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.images)


class Attack(ABC):
    """An attempt to get faces back from payloads; it never sees the images behind them.

    Authors set `name` and `title`, and write `needs` and `recover`. Calling the attack is sealed: the call checks that
    the threat model covers the needs, that the payload is the target's, and that the result is complete.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Options: ClassVar[type[AttackOptions]] = AttackOptions

    def __init__(self, options: AttackOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            raise TypeError(f"{cls.__qualname__} overrides Attack.__call__, which is sealed; write `recover` instead")

    @abstractmethod
    def needs(self, target: Method, faces: Tensor | None) -> ThreatModel:
        """The weakest threat model under which this attack can run on `target` with these public faces."""

    @abstractmethod
    def recover(self, target: Method, payload: Payload, faces: Tensor | None, progress: Progress) -> Recovery:
        """Images from a payload; raises AttackError when the attack does not apply to `target`."""

    @final
    def __call__(
        self,
        target: Method,
        payload: Payload,
        *,
        faces: Tensor | None = None,
        threat: ThreatModel | None = None,
        progress: Progress | None = None,
    ) -> Recovery:
        """Attack a payload of `target`.

        `faces` (n,3,H,W) RGB in [-1,1] are public faces, never those behind the payload. `threat` is what the attacker
        is granted; without one it is exactly what the attack needs. Raises AttackError when the threat model does not
        cover the attack, when the attack does not apply to the target, and when its result is not complete;
        PayloadError for the payload of another method.
        """
        target.schema.check(payload.tensors)
        payload.check_finite()
        if faces is not None:
            self._check_faces(faces, target.input_size)
        needed = self.needs(target, faces)
        granted = needed if threat is None else threat
        missing = granted.lacks(needed)
        if missing:
            raise AttackError(
                f"{self.name} on {target.info.name} needs {', '.join(missing)}, which the threat model "
                f"({granted}) does not grant; grant it or use another attack"
            )
        started = time.perf_counter()
        found = self.recover(target, payload, faces, progress or _silent)
        self._check_result(found, len(payload), target)
        return replace(
            found,
            images=found.images.detach(),
            attack=self.name,
            target=target.info.name,
            threat=granted,
            seconds=time.perf_counter() - started,
        )

    def _check_faces(self, faces: Tensor, size: tuple[int, int]) -> None:
        try:
            check_images(faces, size)
        except ShapeError as error:
            raise AttackError(f"{self.name}: public faces: {error}") from error
        if not len(faces):
            raise AttackError(f"{self.name}: there are no public faces in `faces`; give some, or None")

    def _check_result(self, found: Recovery, rows: int, target: Method) -> None:
        images = found.images
        expected = (rows, 3, *target.input_size)
        if tuple(images.shape) != expected or not images.is_floating_point():
            raise AttackError(
                f"{self.name} returned images {tuple(images.shape)} {images.dtype}; expected {expected}, float, "
                "one for each payload"
            )
        if not bool(torch.isfinite(images).all()):
            bad = (~torch.isfinite(images.flatten(1)).all(1)).nonzero().flatten().tolist()
            raise AttackError(f"{self.name} returned values that are not finite in rows {bad}; expected [0, 1]")
        if rows and not (float(images.min()) >= 0 and float(images.max()) <= 1):
            raise AttackError(
                f"{self.name} returned values in [{float(images.min()):.4g}, {float(images.max()):.4g}]; "
                "expected [0, 1]"
            )
        for what, length in (("hypotheses", len(found.hypotheses)), ("misfit", _length(found.misfit))):
            if length not in (0, rows):
                raise AttackError(f"{self.name} returned {length} {what} for {rows} payloads; expected one each")


def _length(values: Tensor | None) -> int:
    return 0 if values is None else len(values)


def _silent(done: int, total: int) -> None:
    """Report nothing."""


_REGISTRY: dict[str, type[Attack]] = {}
_AttackType = TypeVar("_AttackType", bound=type[Attack])


def register(cls: _AttackType) -> _AttackType:
    """Class decorator that makes an attack known by its `name`; raises AttackError for a name already taken."""
    known = _REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise AttackError(
            f"attack name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}; choose another"
        )
    _REGISTRY[cls.name] = cls
    return cls


def _discover() -> None:
    package = importlib.import_module("ppfr.attacks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ppfr.attacks.{module.name}")


def attacks() -> list[str]:
    """Names of all registered attacks, sorted."""
    _discover()
    return sorted(_REGISTRY)


def create_attack(name: str, **options: Any) -> Attack:
    """Build an attack by name with its own options.

    Raises AttackError for an unknown attack or option, naming each refused option and the ones that exist.
    """
    _discover()
    if name not in _REGISTRY:
        raise AttackError(f"no attack {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    cls = _REGISTRY[name]
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']} (got {problem['input']!r})"
            for problem in error.errors()
        )
        known = ", ".join(sorted(cls.Options.model_fields)) or "none"
        raise AttackError(f"{name}: {problems}. Options: {known}") from error
