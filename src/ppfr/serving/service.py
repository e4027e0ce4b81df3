"""What a server does with payloads: enrol, recognise, verify. Knows nothing of HTTP."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.methods import Payload
from ppfr.serving.contract import Contract
from ppfr.serving.gallery.gallery import Face, Gallery
from ppfr.serving.runtime.batching import Batcher
from ppfr.serving.search.index import SearchUnavailable
from ppfr.serving.search.keeper import IndexKeeper
from ppfr.serving.search.recall import gallery_recall
from ppfr.util.errors import PayloadError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Likeness:
    """A subject, and the cosine in [-1,1] of the probe with the nearest of the subject's templates."""

    subject: str
    similarity: float


class Service:
    """One deployment at work: messages in, subjects and similarities out.

    Every message is one image's payload in any coding, bound to the contract; raises PayloadError for others.
    """

    def __init__(self, contract: Contract, gallery: Gallery, keeper: IndexKeeper, batcher: Batcher) -> None:
        self.contract = contract
        self.gallery = gallery
        self._keeper = keeper
        self._batcher = batcher

    def __len__(self) -> int:
        return len(self._keeper.index)

    def close(self) -> None:
        """Finish what is under way and give everything back."""
        self._batcher.close()
        self._keeper.stop()
        self._keeper.index.close()
        self.gallery.close()

    def refresh(self) -> None:
        """See the gallery's changes now, not within the polling interval, unless an outside index is away."""
        try:
            self._keeper.refresh()
        except SearchUnavailable:
            # what was asked for is in the database; the keeper goes on trying
            _LOG.exception("the index is behind the gallery")

    def recall(self) -> float:
        """The share of the 10 nearest templates that the index finds, in [0,1], measured with the gallery's own."""
        return gallery_recall(self._keeper.index, self.gallery)

    def enrol(self, message: bytes, subject: str, *, request: str | None = None, actor: str = "") -> Face:
        """Store the face's template under a subject; with a `request` key, repeating the call changes nothing."""
        embedding = self._embed(message, images=1)[0]
        face = self.gallery.enrol(subject, embedding, request=request, content=message, actor=actor)
        self.refresh()
        return face

    def recognise(self, message: bytes, limit: int = 1) -> list[Likeness]:
        """The `limit` most similar subjects, best first."""
        probe = self._probes(message)
        held = len(self)
        wanted = limit
        while True:
            matches = self._keeper.index.search(probe, wanted)[0]
            owners = self.gallery.owners([match.key for match in matches])
            best: dict[str, float] = {}
            for match in matches:
                if match.key in owners:
                    best.setdefault(owners[match.key], match.score)
            if len(best) >= limit or wanted >= held:
                return [Likeness(*pair) for pair in list(best.items())[:limit]]
            # several templates of one subject lay in front
            wanted = min(held, 4 * wanted)

    def verify_face(self, message: bytes, face: str) -> Likeness | None:
        """How similar the probe is to one enrolled face; None if there is no such face."""
        template = self.gallery.template(face)
        owner = self.gallery.owners([face]).get(face)
        if template is None or owner is None:
            return None
        return Likeness(owner, _cosine(self._probes(message)[0], template))

    def verify_subject(self, message: bytes, subject: str) -> Likeness | None:
        """How similar the probe is to the nearest face of a subject; None for a subject without faces."""
        templates = [self.gallery.template(face.id) for face in self.gallery.faces(subject)]
        held = [template for template in templates if template is not None]
        if not held:
            return None
        probe = self._probes(message)[0]
        return Likeness(subject, max(_cosine(probe, template) for template in held))

    def verify_pair(self, message: bytes) -> float:
        """The cosine of two faces that nobody enrolled; the message holds both images' payloads."""
        first, second = self._probes(message, images=2)
        return _cosine(first, second)

    def _probes(self, message: bytes, *, images: int = 1) -> Tensor:
        """Templates (N,D) to compare with the gallery's."""
        return self.gallery.protect(self._embed(message, images=images))

    def _embed(self, message: bytes, *, images: int) -> Tensor:
        payload = Payload.from_bytes(message, self.contract.schema, contract=self.contract.id, images=images)
        if len(payload) != images:
            raise PayloadError(f"payload holds {len(payload)} images; expected {images}")
        embeddings = torch.from_numpy(self._batcher.embed(payload))
        if not bool(torch.isfinite(embeddings).all()) or not bool(embeddings.norm(dim=1).all()):
            raise PayloadError("payload has no embedding: its values are far from what a client sends")
        return embeddings


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first, second, dim=0))
