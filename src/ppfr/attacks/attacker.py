"""The attacker: everything that an attack can reach, each thing behind a check of the threat model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppfr.attacks.budget import BUDGETS, Budget, Progress
from ppfr.attacks.learned.features import FeatureCache, FeatureExtractor
from ppfr.attacks.learned.training_pairs import TrainingPairs
from ppfr.attacks.observation import Deployments, observe, second_deployment, stored_templates, template_schema
from ppfr.attacks.public_data import Pairs, PublicFaces
from ppfr.attacks.threat import Has, Knows, Sees, ThreatModel, client_knowledge, held
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError

# streams of random numbers from here on are draws of a client
_FIRST_DRAW = 1 << 16


class Attacker:
    """Everything that an attack can reach; each thing is available only if the threat model grants it.

    `target` describes the attacked method, `schema` is that of its payload, or of its stored templates where the
    attacker sees those, and `payloads_per_image` is how many payloads of each image (or person) it sees. `budget`
    limits the work, `progress` is called as it goes on, and `generator()` is the source of randomness. Attackers of the
    same targets share feature extractors through one `cache`.
    """

    def __init__(
        self,
        target: Method,
        threat: ThreatModel,
        *,
        faces: PublicFaces | None = None,
        recogniser: Recogniser | None = None,
        pairs: Pairs | None = None,
        payloads_per_image: int = 1,
        budget: Budget = BUDGETS["fast"],
        seed: int = 0,
        progress: Progress | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self._method, self._faces, self._recogniser, self._pairs = target, faces, recogniser, pairs
        self._cache = FeatureCache() if cache is None else cache
        self.threat = threat
        self.target: MethodInfo = target.info
        self.input_size = target.input_size
        self.schema = template_schema(target) if threat.sees is Sees.TEMPLATES else target.schema
        self.payloads_per_image = payloads_per_image
        self.budget = budget
        self.seed = seed
        self.progress: Progress = progress or _silent
        places = [tensor.device for tensor in (*target.parameters(), *target.buffers())]
        self.device = places[0] if places else torch.device("cpu") if faces is None else faces.images.device

    @property
    def holds(self) -> frozenset[Has]:
        """What this attacker was given; access to queries is granted by the threat model alone."""
        return held(self._faces, self._recogniser, self._pairs)

    @property
    def faces(self) -> PublicFaces:
        """Public faces; raises AttackError when there are none or the threat model does not grant them."""
        self._require(Has.FACES)
        if self._faces is None:
            raise AttackError(f"this attack on {self.target.name} needs public faces; give some as `faces`")
        return self._faces

    @property
    def face_images(self) -> Tensor | None:
        """Public faces (n,3,H,W) in [-1,1] on the attacker's device, for an attack that can do without (None)."""
        return self.faces.images.to(self.device) if Has.FACES in self.holds else None

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

    def training_pairs(self) -> TrainingPairs:
        """The pairs that the attacker holds, else public faces that it sends through the client itself."""
        if Has.PAIRS in self.holds:
            payload, images = self.pairs.payload, self.pairs.images.to(self.device)
            return TrainingPairs(images, self.schema, lambda rows, _: payload.select(rows).to(self.device), fresh=False)
        faces = self.faces.images.to(self.device)
        return TrainingPairs(faces, self.schema, lambda rows, generator: self.query(faces[rows], generator), fresh=True)

    def features(self) -> FeatureExtractor:
        """The feature extractor of the target's payloads, learned once for all attacks with the same cache and data."""
        weights = tuple(float(tensor.detach().double().sum()) for tensor in self._method.state_dict().values())
        return self._cache.get(
            (self._method, None if self._faces is None else self._faces.images, self._pairs),
            (self.threat.sees, self.budget, self.seed, weights),
            lambda: FeatureExtractor(self.training_pairs(), self.input_size, self.generator(1), self.progress),
        )

    def hypotheses(self) -> list[Hypothesis]:
        """Every possible client, for an attacker who knows the deployment's secrets or a method without any.

        Empty where the client's draws are too many to list. Raises AttackError for an attacker who knows less.
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

        For an attacker who sees templates the server enrols them. Raises AttackError without query access.
        """
        self._require(Has.QUERIES)
        return observe(self._method, images, self.threat.sees, generator)

    def embed(self, payload: Payload) -> Tensor:
        """The server's embeddings (B,D) of a payload, for an attacker who knows the public parameters.

        Raises AttackError for an attacker who knows less, MethodError for a method without a server.
        """
        self._require_knowledge(Knows.PARAMETERS)
        return stored_templates(self._method, payload)["template"]

    def deployments(self) -> Deployments:
        """The target and a second deployment of it, for an attacker who sees templates and can enrol faces with both.

        Raises AttackError for any other attacker, and when the target cannot draw other secrets.
        """
        self._require(Has.QUERIES)
        if self.threat.sees is not Sees.TEMPLATES:
            raise AttackError(f"deployments of {self.target.name} are compared by templates, not by {self.threat.sees}")
        return Deployments(self._method, second_deployment(self._method, self.seed))

    def generator(self, stream: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        """A new generator that depends on the attacker's seed and on `stream` alone."""
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


def _silent(done: int, total: int) -> None:
    """Report nothing."""
