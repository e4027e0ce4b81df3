"""The attacker: all that an attack can reach, each thing behind a check of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ppfr.attacks.deployments import second_deployment
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.cost import evaluating
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.method import Method, check_images
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec
from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError, ShapeError

Progress = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""

# images that go through a client at once: so many, or as many as their payloads leave room for
_BATCH, _BYTES = 32, 1 << 26

# streams of random numbers from here on are draws of a client
_FIRST_DRAW = 1 << 16

_Learned = TypeVar("_Learned")


class _Shelf:
    """The last thing learned of a method, and what it was learned from.

    It lies on the method, to which what was learned leads back: in a table by method, a weak one too, both would stay.
    """

    def __init__(self) -> None:
        self.known: tuple[Hashable, tuple[Any, ...], Any] | None = None

    @classmethod
    def of(cls, method: Method) -> _Shelf:
        found: _Shelf = method.__dict__.setdefault("_shelf", cls())
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shelf:
        # of a copy nothing is known
        return _Shelf()


@dataclass(frozen=True)
class Budget:
    """How much an attack may spend: public faces to learn from at most, and a factor on its usual steps.

    Budgets count steps, not seconds, so that a seed repeats a result on any machine.
    """

    name: str
    faces: int
    effort: float

    def steps(self, usual: int) -> int:
        """How many steps to take where `fast` takes `usual`; at least one, unless that is none."""
        return max(1, round(usual * self.effort)) if usual else 0


BUDGETS = {
    budget.name: budget
    for budget in (Budget("fast", 512, 1.0), Budget("standard", 4096, 4.0), Budget("full", 65536, 20.0))
}


def find_budget(budget: Budget | str) -> Budget:
    """A budget by name, or as it is; raises AttackError for an unknown name."""
    if isinstance(budget, Budget):
        return budget
    if budget not in BUDGETS:
        raise AttackError(f"no budget {budget!r}; known: {', '.join(BUDGETS)}")
    return BUDGETS[budget]


@dataclass(frozen=True)
class PublicFaces:
    """Faces the attacker may learn from, of other people than those attacked.

    `images` (n,3,H,W) RGB in [-1,1]; `people` (n,) numbers their identities, where known; `labels` are further facts
    about each image by name, (n,) each, such as a soft attribute.
    """

    images: Tensor
    people: Tensor | None = None
    labels: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, values in {"people": self.people, **(self.labels or {})}.items():
            if values is not None and values.shape != self.images.shape[:1]:
                raise AttackError(
                    f"public faces: {name} has shape {tuple(values.shape)} for {len(self.images)} images; "
                    "expected one value each"
                )

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, faces: PublicFaces | FaceSet | Tensor, most: int) -> PublicFaces:
        """At most `most` of some faces, evenly spaced over the set."""
        if isinstance(faces, FaceSet):
            rows = spread(len(faces), most)
            return cls(to_tensor(faces.images(rows)), torch.from_numpy(faces.labels[rows]))
        found = cls(faces) if isinstance(faces, Tensor) else faces
        return found if len(found) <= most else found.select(spread(len(found), most))

    def select(self, rows: list[int]) -> PublicFaces:
        """Some of the faces, by row."""
        return PublicFaces(
            self.images[rows],
            None if self.people is None else self.people[rows],
            {name: values[rows] for name, values in (self.labels or {}).items()},
        )

    def to(self, device: torch.device) -> PublicFaces:
        """The same faces on another device."""
        return PublicFaces(
            self.images.to(device),
            None if self.people is None else self.people.to(device),
            {name: values.to(device) for name, values in (self.labels or {}).items()},
        )


@dataclass(frozen=True)
class Pairs:
    """What the attacker saw (rows of a payload, or of templates) and the images (n,3,H,W) in [-1,1] behind it."""

    payload: Payload
    images: Tensor

    def __post_init__(self) -> None:
        if len(self.payload) != len(self.images):
            raise AttackError(f"pairs: {len(self.payload)} payloads for {len(self.images)} images; expected one each")

    def __len__(self) -> int:
        return len(self.images)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spaced."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(count, wanted)).round())]


def portions(count: int, schema: PayloadSchema, most: int = _BATCH) -> list[range]:
    """`count` rows in order, few enough at once that payloads and what is made of them stay far below a gigabyte."""
    size = min(most, max(1, _BYTES // max(1, schema.nbytes)))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def template_schema(target: Method) -> PayloadSchema:
    """The schema of what a server of this method stores of a face: its embedding, as `template`."""
    return PayloadSchema(target.info.name, {"template": TensorSpec((target.embedding_size,), "stored embedding")})


@torch.no_grad()
def stored_templates(target: Method, payload: Payload) -> Payload:
    """What the server keeps of payloads it enrols, for attacks that see templates."""
    with evaluating(target):
        parts = [target.embed(payload.select(rows)).float() for rows in portions(len(payload), target.schema)]
    return Payload(template_schema(target), {"template": torch.cat(parts)})


@torch.no_grad()
def observe(target: Method, images: Tensor, sees: Sees, views: int, generator: torch.Generator) -> list[Payload]:
    """What reaches an attacker of images (B,3,H,W) in [-1,1]: `views` payloads of each, or of each its template."""

    def seen(rows: range) -> Payload:
        payload = target.protect(images[rows.start : rows.stop], generator)
        # at once: templates are a thousandth of what they are made from
        return stored_templates(target, payload) if sees is Sees.TEMPLATES else payload

    parts = portions(len(images), target.schema)
    with evaluating(target):
        return [Payload.concatenate(seen(rows) for rows in parts) for _ in range(views)]


@dataclass(frozen=True)
class Deployments:
    """Two deployments of one method, with which the same people enrol; see `second_deployment`."""

    first: Method
    second: Method

    @property
    def alike(self) -> bool:
        """Whether nothing tells the two apart."""
        return self.first is self.second

    def enrol(self, images: Tensor, generator: torch.Generator, *, second: bool) -> Tensor:
        """Templates (B,D) that one of the two stores of images (B,3,H,W) in [-1,1].

        Raises MethodError for a method without a server.
        """
        target = self.second if second else self.first
        return observe(target, images, Sees.TEMPLATES, 1, generator)[0]["template"]


class Attacker:
    """All that an attack can reach. Each thing is handed out only if the threat model grants it.

    `target` tells which method is attacked, `schema` what is seen of it: the schema of its payload, or of its stored
    templates. `views` is how many payloads of each image (or person) are seen. `budget`, `progress` and `generator()`
    say how much may be spent, whom to tell and where randomness comes from.
    """

    def __init__(
        self,
        target: Method,
        threat: ThreatModel,
        *,
        faces: PublicFaces | None = None,
        recogniser: Recogniser | None = None,
        pairs: Pairs | None = None,
        views: int = 1,
        budget: Budget = BUDGETS["fast"],
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._method, self._faces, self._recogniser, self._pairs = target, faces, recogniser, pairs
        self.threat = threat
        self.target: MethodInfo = target.info
        self.input_size = target.input_size
        self.schema = template_schema(target) if threat.sees is Sees.TEMPLATES else target.schema
        self.views = views
        self.budget = budget
        self.seed = seed
        self.progress: Progress = progress or _silent
        places = [tensor.device for tensor in (*target.parameters(), *target.buffers())]
        self.device = places[0] if places else torch.device("cpu") if faces is None else faces.images.device

    @property
    def holds(self) -> frozenset[Has]:
        """What this attacker was handed; whether it may query is a matter of the threat model alone."""
        return held(self._faces, self._recogniser, self._pairs)

    @property
    def faces(self) -> PublicFaces:
        """Public faces; raises AttackError when there are none or the threat model does not grant them."""
        self._require(Has.FACES)
        if self._faces is None:
            raise AttackError(f"this attack on {self.target.name} needs public faces; give some as `faces`")
        return self._faces

    @property
    def recogniser(self) -> Recogniser:
        """The attacker's own recogniser of clear faces; raises AttackError as `faces` does."""
        self._require(Has.RECOGNISER)
        if self._recogniser is None:
            raise AttackError(f"this attack on {self.target.name} needs a public recogniser; give one as `recogniser`")
        return self._recogniser

    @property
    def pairs(self) -> Pairs:
        """Payloads together with the images behind them; raises AttackError as `faces` does."""
        self._require(Has.PAIRS)
        if self._pairs is None:
            raise AttackError(f"this attack on {self.target.name} needs payload/image pairs; give them as `pairs`")
        return self._pairs

    def hypotheses(self) -> list[Hypothesis]:
        """Every client there may be, for one who knows the deployment's secrets or a method without any.

        Empty where the client's draws are too many to list. Raises AttackError for one who knows less.
        """
        self._require_knowledge(client_knowledge(self.target))
        return self._method.hypotheses()

    def client(self, draw: int) -> Callable[[Tensor], dict[str, Tensor]]:
        """The client with its random draws fixed, the same for every image; each `draw` is another choice of them.

        It maps images (B,3,H,W) in [-1,1] to the payload's tensors, with gradients where there are any. Raises
        AttackError as `hypotheses` does.
        """
        self._require_knowledge(client_knowledge(self.target))

        def apply(images: Tensor) -> dict[str, Tensor]:
            streams = (self.generator(_FIRST_DRAW + draw, images.device) for _ in images)
            rows = [self._method._protect(image[None], own) for image, own in zip(images, streams, strict=True)]
            return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

        return apply

    def query(self, images: Tensor, generator: torch.Generator) -> Payload:
        """What the attacker would see of images (B,3,H,W) in [-1,1] that it sends through the client itself.

        For one who sees templates the server has enrolled them. Raises AttackError without query access.
        """
        self._require(Has.QUERIES)
        return observe(self._method, images, self.threat.sees, 1, generator)[0]

    def embed(self, payload: Payload) -> Tensor:
        """The server's embeddings (B,D) of a payload, for one who knows the public parameters.

        Raises AttackError for one who knows less, MethodError for a method without a server.
        """
        self._require_knowledge(Knows.PARAMETERS)
        return stored_templates(self._method, payload)["template"]

    def shared(self, learn: Callable[[], _Learned]) -> _Learned:
        """What `learn` gives, or gave to another attacker of this target with the same faces, pairs, budget and seed.

        Only the last thing learned of a target is kept, and only while its weights stay as they were.
        """
        weights = tuple(float(tensor.detach().double().sum()) for tensor in self._method.state_dict().values())
        sources = (None if self._faces is None else self._faces.images, self._pairs)
        key = (learn.__qualname__, self.threat.sees, self.budget, self.seed, weights, tuple(map(id, sources)))
        shelf = _Shelf.of(self._method)
        if shelf.known is None or shelf.known[0] != key:
            # the sources are kept with it, so that their ids stay theirs
            shelf.known = key, sources, learn()
        found: _Learned = shelf.known[2]
        return found

    def deployments(self) -> Deployments:
        """The target and a second deployment of it, for one who sees templates and can enrol faces with both.

        Raises AttackError for one who cannot, and when the target does not say how other secrets are drawn.
        """
        self._require(Has.QUERIES)
        if self.threat.sees is not Sees.TEMPLATES:
            raise AttackError(f"deployments of {self.target.name} are compared by templates, not by {self.threat.sees}")
        return Deployments(self._method, second_deployment(self._method, self.seed))

    def split_views(self, payload: Payload) -> list[Payload]:
        """The first payload of every image, the second of every image, and so on."""
        count = len(payload) // self.views
        return [payload.select(range(view * count, (view + 1) * count)) for view in range(self.views)]

    def generator(self, stream: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator, alike for alike seeds; each `stream` is another one."""
        return torch.Generator(device).manual_seed(self.seed * 1_000_003 + stream)

    def _require(self, item: Has) -> None:
        if item not in self.threat.has:
            raise AttackError(
                f"an attack on {self.target.name} used {item}, which its threat model ({self.threat}) lacks"
            )

    def _require_knowledge(self, needed: Knows) -> None:
        if not self.threat.knows_of(needed):
            raise AttackError(
                f"an attack on {self.target.name} used knowledge of {needed}, which its threat model ({self.threat}) "
                "lacks"
            )


def client_knowledge(target: MethodInfo) -> Knows:
    """What one must know to list a method's possible clients."""
    return Knows.SECRETS if target.secrets else Knows.PARAMETERS


def held(faces: PublicFaces | None, recogniser: Recogniser | None, pairs: Pairs | None) -> frozenset[Has]:
    """Which things were handed over."""
    things = {Has.FACES: faces, Has.RECOGNISER: recogniser, Has.PAIRS: pairs}
    return frozenset(item for item, thing in things.items() if thing is not None)


def check_public_faces(faces: PublicFaces, size: tuple[int, int]) -> None:
    """Raise AttackError for public faces of another size, type or range, and for none."""
    try:
        check_images(faces.images, size)
    except ShapeError as error:
        raise AttackError(f"public faces: {error}") from error
    if not len(faces):
        raise AttackError("there are no public faces in `faces`; give some, or None")


def _silent(done: int, total: int) -> None:
    """Report nothing."""
