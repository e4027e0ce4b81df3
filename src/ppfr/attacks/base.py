"""The interface of attacks: results, the sealed call that checks what an attack uses and returns, and the registry."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack, final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.budget import Budget, Progress, find_budget
from ppfr.attacks.learned.features import FeatureCache
from ppfr.attacks.metrics import (
    Figure,
    MetricContext,
    attribute_accuracy,
    image_similarity,
    linkage,
    re_identification,
)
from ppfr.attacks.public_data import Pairs, PublicFaces
from ppfr.attacks.threat import Has, ThreatModel, held
from ppfr.data.faceset import FaceSet
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError
from ppfr.util.registry import Registry


class AttackOptions(BaseModel):
    """Settings of one attack; unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """The result of an attack, one row for each image that was attacked, and the conditions it was obtained under.

    Authors of a new type of result write `checked` and `metrics`, and name in `per_row` the fields with one entry for
    each row; the first of these is always present. The sealed call of an attack fills in the conditions. `recogniser`
    is the SHA-256 of the attacker's own recogniser, empty without one; it may not judge the result. `seconds` includes
    preparation.
    """

    per_row: ClassVar[tuple[str, ...]]

    notes: Mapping[str, str] = field(default_factory=dict)
    attack: str = ""
    target: str = ""
    threat: ThreatModel = field(default_factory=ThreatModel)
    recogniser: str = ""
    budget: str = ""
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(getattr(self, self.per_row[0]))

    @abstractmethod
    def checked(self, rows: int, attacker: Attacker) -> Self:
        """This result without gradients, for `rows` attacked images; raises AttackError where it is incomplete."""

    @abstractmethod
    def metrics(self, context: MetricContext) -> list[Figure]:
        """The metrics of this result that `context` allows; the first that `counts` is the leak."""

    @property
    def pictures(self) -> Tensor | None:
        """Recovered images (B,3,H,W) RGB in [0,1] to show, for a result that has any."""
        return None

    @final
    def measure(self, context: MetricContext) -> dict[str, Figure]:
        """All metrics by name; raises AttackError for another number of originals than rows, and as `metrics` does."""
        if len(self) != len(context.truth.people):
            raise AttackError(f"{len(context.truth.people)} originals for {len(self)} results; expected one each")
        return {figure.name: figure for figure in self.metrics(context)}

    @final
    def join(self, others: Sequence[Self]) -> Self:
        """This result followed by those of further rows, attacked under the same conditions."""
        parts = [self, *others]
        joined = {name: _concatenated([getattr(part, name) for part in parts]) for name in self.per_row}
        return replace(self, **joined, seconds=sum(part.seconds for part in parts))


def _concatenated(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else sum(values, ())


@dataclass(frozen=True)
class Recovery(Result):
    """Images recovered from payloads, one row an image.

    `images` (B,3,H,W) RGB in [0,1]; `hypotheses` names the hypothesis about the client's draws that was chosen for each
    row; `misfit` (B,) is the distance of the recovered image's payload from the observed one, as a fraction of the
    observed one's distance from the mean face's; `tensors` are the payload tensors that were used and `prior` describes
    the prior distribution of faces.
    """

    per_row = ("images", "hypotheses", "misfit")
    images: Tensor
    hypotheses: tuple[str, ...] = ()
    misfit: Tensor | None = None
    tensors: tuple[str, ...] = ()
    prior: str = ""

    def checked(self, rows: int, attacker: Attacker) -> Self:
        _check_rows(self.images, (rows, 3, *attacker.input_size), "images")
        if rows and not (float(self.images.min()) >= 0 and float(self.images.max()) <= 1):
            raise AttackError(
                f"values in [{float(self.images.min()):.4g}, {float(self.images.max()):.4g}]; expected [0, 1]"
            )
        for what, values in (("hypotheses", self.hypotheses), ("misfit", self.misfit)):
            if values is not None and len(values) not in (0, rows):
                raise AttackError(f"{len(values)} {what} for {rows} payloads; expected one each")
        return replace(self, images=self.images.detach())

    def metrics(self, context: MetricContext) -> list[Figure]:
        """Identification by the judge, where there is one, and similarity to the originals.

        Raises AttackError for a judge that is the attacker's own recogniser.
        """
        similarity = image_similarity(self.images, context.truth)
        if context.judge is None:
            return similarity
        if self.recogniser and self.recogniser == context.judge.sha256:
            raise AttackError(
                f"{context.judge.name} is the attacker's own recogniser in {self.attack}; a judge must be one that "
                "neither the method nor the attack was trained with"
            )
        return [*re_identification(self.images, context.judge, context.truth), *similarity]

    @property
    def pictures(self) -> Tensor:
        return self.images


@dataclass(frozen=True)
class Linkage(Result):
    """Embeddings (B,D) estimated from payloads, comparable with those of clear photos by the attacker's recogniser."""

    per_row = ("embeddings",)
    embeddings: Tensor

    def checked(self, rows: int, attacker: Attacker) -> Self:
        _check_rows(self.embeddings, (rows, attacker.recogniser.embedding_size), "embeddings")
        return replace(self, embeddings=self.embeddings.detach().float())

    def metrics(self, context: MetricContext) -> list[Figure]:
        """Identification by the recogniser that the embeddings are of; none where it is absent."""
        recogniser = context.recogniser
        if recogniser is None or recogniser.sha256 != self.recogniser:
            return []
        return linkage(self.embeddings.double().cpu().numpy(), recogniser, context.truth)


@dataclass(frozen=True)
class Inference(Result):
    """Predicted classes (B,) int64 of the soft attribute called `attribute`.

    `label` gives the true classes of clear images (B,3,H,W) RGB in [-1,1]; None for an attribute that cannot be
    measured on an image.
    """

    per_row = ("classes",)
    classes: Tensor
    attribute: str
    label: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    def checked(self, rows: int, attacker: Attacker) -> Self:
        if tuple(self.classes.shape) != (rows,) or self.classes.dtype != torch.int64:
            raise AttackError(f"classes {tuple(self.classes.shape)} {self.classes.dtype}; expected ({rows},) int64")
        return self

    def metrics(self, context: MetricContext) -> list[Figure]:
        """Balanced accuracy; none without true classes. Raises AttackError when all originals are of one class."""
        if self.label is None:
            return []
        true = self.label(context.truth.originals)
        return [attribute_accuracy(self.classes, true, self.attribute, context.truth)]


def _check_rows(values: Tensor, expected: tuple[int, ...], what: str) -> None:
    if tuple(values.shape) != expected or not values.is_floating_point():
        raise AttackError(
            f"{what} {tuple(values.shape)} {values.dtype}; expected {expected}, float, one for each payload"
        )
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values.flatten(1)).all(1)).nonzero().flatten().tolist()
        raise AttackError(f"values that are not finite in rows {bad} of {what}")


Found = TypeVar("Found", bound=Result, covariant=True)


class Given(TypedDict, total=False):
    """What an attack is given besides payloads.

    `faces` are public faces, RGB in [-1,1], never those behind the payloads; as many as the budget allows are used.
    `recogniser` is the attacker's own, never the one that judges. `pairs` are payloads with the images behind them.
    `threat` is what the attacker is granted; without one it is exactly what the attack needs. The same `seed` gives the
    same result. `progress` is called with the finished and all parts of the work.
    """

    faces: PublicFaces | FaceSet | Tensor | None
    recogniser: Recogniser | None
    pairs: Pairs | None
    threat: ThreatModel | None
    budget: Budget | str
    seed: int
    progress: Progress | None


class Attack(ABC, Generic[Found]):
    """An attempt to learn about faces from payloads, without the images behind them.

    Authors extend `Attack[Recovery]`, `Attack[Linkage]`, `Attack[Inference]` or that of a result of their own, set
    `name` and `title`, and write `needs`, `run` and, if something must be learned first, `fit`. What `fit` stores in
    attributes lives on a copy, so that an attack object can be used on several targets. The call is sealed: it checks
    that the threat model covers the needs, that nothing beyond it is used, that the payload is the target's, and that
    the result is complete.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Options: ClassVar[type[AttackOptions]] = AttackOptions
    payloads_per_image: ClassVar[int] = 1
    """Number of payloads of each image that it is usually run on."""
    finds_people: ClassVar[bool] = True
    """Whether it identifies people; only identification counts towards the privacy score."""
    profile_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options that an audit sets, by the name of its profile; other profiles use the defaults."""

    def __init__(self, options: AttackOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for sealed in ("__call__", "prepare"):
            if sealed in cls.__dict__:
                raise TypeError(f"{cls.__qualname__} overrides Attack.{sealed}, which is sealed; write `run` instead")

    # --- what authors write -------------------------------------------------------------------------------------
    @abstractmethod
    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        """The weakest threat model under which this attack runs on `target`, for an attacker who was given `holds`."""

    def fit(self, attacker: Attacker) -> None:
        """Learn what does not depend on the payloads under attack, and keep it in attributes."""

    @abstractmethod
    def run(self, attacker: Attacker, payload: Payload) -> Found:
        """The result for a payload; several payloads of each image follow one another, all images of the first first.

        Raises AttackError when the attack does not apply to the target.
        """

    # --- sealed -------------------------------------------------------------------------------------------------
    @final
    def prepare(
        self,
        target: Method,
        *,
        payloads_per_image: int | None = None,
        cache: FeatureCache | None = None,
        **given: Unpack[Given],
    ) -> PreparedAttack[Found]:
        """Learn everything that does not depend on the payloads under attack; the returned attack is called with those.

        `payloads_per_image` is how many payloads of each image (or person) are seen, by default as many as the attack
        is usually run on. Attacks that are prepared with one `cache` share feature extractors. For the rest see
        `Given`. Raises AttackError when the threat model does not cover the attack, and when the attack does not apply
        to the target.
        """
        each = self.payloads_per_image if payloads_per_image is None else payloads_per_image
        budget = find_budget(given.get("budget", "fast"))
        faces, recogniser, pairs = given.get("faces"), given.get("recogniser"), given.get("pairs")
        public = None if faces is None else PublicFaces.of(faces, budget.faces)
        needed = self.needs(target.info, held(public, recogniser, pairs))
        granted = given.get("threat") or needed
        try:
            self._check_grant(needed, granted, each)
            if public is not None:
                public.check(target.input_size)
            attacker = Attacker(
                target,
                granted,
                faces=public,
                recogniser=recogniser,
                pairs=pairs,
                payloads_per_image=each,
                budget=budget,
                seed=given.get("seed", 0),
                progress=given.get("progress"),
                cache=cache,
            )
            started = time.perf_counter()
            attack = copy.copy(self)
            attack.fit(attacker)
        except AttackError as error:
            raise AttackError(f"{self.name} on {target.info.name}: {error}") from error
        return PreparedAttack(attack, attacker, time.perf_counter() - started)

    @final
    def __call__(self, target: Method, payload: Payload | Sequence[Payload], **given: Unpack[Given]) -> Found:
        """Attack a payload of `target`, or several: row i of each is then of the same image (or person).

        Raises AttackError as `prepare` does and when the result is not complete, PayloadError for the payload of
        another method.
        """
        each = 1 if isinstance(payload, Payload) else len(payload)
        return self.prepare(target, payloads_per_image=each, **given)(payload)

    @staticmethod
    def _check_grant(needed: ThreatModel, granted: ThreatModel, payloads_per_image: int) -> None:
        missing = granted.lacks(needed)
        if missing:
            raise AttackError(
                f"needs {', '.join(missing)}, which the threat model ({granted}) does not grant; grant it or use "
                "another attack"
            )
        if payloads_per_image < 1 or (payloads_per_image > 1 and not granted.sees.several):
            raise AttackError(f"{payloads_per_image} payloads of each image, but the attacker sees {granted.sees}")


class PreparedAttack(Generic[Found]):
    """An attack that has learned what it needs; call it with payloads, as often as wanted."""

    def __init__(self, attack: Attack[Found], attacker: Attacker, seconds: float) -> None:
        self.attack, self.attacker, self.seconds = attack, attacker, seconds

    def __call__(self, payload: Payload | Sequence[Payload]) -> Found:
        """The result for a payload, or for several: row i of each is then of the same image (or person).

        Raises AttackError when the result is not complete or the number of payloads is not that which the attack was
        prepared for, PayloadError for the payload of another method.
        """
        attacker, name = self.attacker, self.attack.name
        payloads = [payload] if isinstance(payload, Payload) else list(payload)
        for one in payloads:
            attacker.schema.check(one.tensors)
            one.check_finite()
        lengths = {len(one) for one in payloads}
        if len(payloads) != attacker.payloads_per_image or len(lengths) != 1:
            raise AttackError(
                f"{name}: {len(payloads)} payloads of {sorted(lengths)} rows; expected "
                f"{attacker.payloads_per_image}, equally long"
            )
        started = time.perf_counter()
        try:
            found = self.attack.run(attacker, Payload.concatenate(payloads)).checked(lengths.pop(), attacker)
        except AttackError as error:
            raise AttackError(f"{name} on {attacker.target.name}: {error}") from error
        known = attacker.recogniser.sha256 if Has.RECOGNISER in attacker.threat.has & attacker.holds else ""
        return replace(
            found,
            attack=name,
            target=attacker.target.name,
            threat=attacker.threat,
            recogniser=known,
            budget=attacker.budget.name,
            seconds=self.seconds + time.perf_counter() - started,
        )


_ATTACKS: Registry[type[Attack[Any]]] = Registry("attack", "ppfr.attacks", AttackError)
_AttackType = TypeVar("_AttackType", bound=type[Attack[Any]])


def register(cls: _AttackType) -> _AttackType:
    """Class decorator that makes an attack known by its `name`; raises AttackError for a name already taken."""
    _ATTACKS.register(cls.name, cls)
    return cls


def attack_names() -> list[str]:
    """Names of all registered attacks, sorted."""
    return _ATTACKS.names()


def attack_class(name: str) -> type[Attack[Any]]:
    """The class registered under `name`; raises AttackError that lists the known names."""
    return _ATTACKS.find(name)


def create_attack(name: str, **options: Any) -> Attack[Any]:
    """Build an attack by name with its own options.

    Raises AttackError for an unknown attack or option, naming each refused option and the ones that exist.
    """
    cls = attack_class(name)
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']} (got {problem['input']!r})"
            for problem in error.errors()
        )
        known = ", ".join(sorted(cls.Options.model_fields)) or "none"
        raise AttackError(f"{name}: {problems}. Options: {known}") from error


__all__ = [
    "Attack",
    "AttackOptions",
    "Found",
    "Given",
    "Inference",
    "Linkage",
    "PreparedAttack",
    "Recovery",
    "Result",
    "attack_class",
    "attack_names",
    "create_attack",
    "register",
]
