"""What a server does with payloads: enrol, recognise, verify. Knows nothing of HTTP."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.methods import Payload
from ppfr.serving.contract import Candidate, Contract
from ppfr.serving.crypto.templates import TemplateKind
from ppfr.serving.gallery.faces import Face
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.runtime.batching import Batcher
from ppfr.serving.runtime.embedder import Embedder
from ppfr.serving.search.indexes import open_index
from ppfr.serving.search.synchronised import SynchronisedIndex
from ppfr.util.errors import PayloadError
from ppfr.util.keyring import Keyring


class Service:
    """One running deployment: messages in, subjects and similarities out.

    Every message is one image's payload in any coding, bound to the contract; raises PayloadError for others.
    """

    def __init__(self, contract: Contract, gallery: Gallery, index: SynchronisedIndex, batcher: Batcher) -> None:
        self.contract = contract
        self.gallery = gallery
        self.index = index
        self._batcher = batcher

    def close(self) -> None:
        """Finish the requests under way and close the index and the database."""
        self._batcher.close()
        self.index.close()
        self.gallery.close()

    def enrol(self, message: bytes, subject: str, *, request: str | None = None, actor: str = "") -> Face:
        """Store the face's template under a subject; with a `request` key, repeating the call changes nothing."""
        embedding = self._embed(message, images=1)[0]
        face = self.gallery.faces.enrol(subject, embedding, request=request, content=message, actor=actor)
        self.index.try_refresh()
        return face

    def recognise(self, message: bytes, limit: int = 1) -> list[Candidate]:
        """The `limit` most similar subjects, best first."""
        return self.index.search(self._embed(message, images=1)[0], limit)

    def verify_face(self, message: bytes, face: str) -> Candidate | None:
        """How similar the probe is to one enrolled face; None if there is no such face."""
        template = self.gallery.faces.template(face)
        owner = self.gallery.faces.owners([face]).get(face)
        if template is None or owner is None:
            return None
        return Candidate(owner, _cosine(self._probes(message)[0], template))

    def verify_subject(self, message: bytes, subject: str) -> Candidate | None:
        """How similar the probe is to the nearest face of a subject; None for a subject without faces."""
        templates = self.gallery.faces.templates(subject)
        if templates is None:
            return None
        probe = self._probes(message)[0]
        return Candidate(subject, max(_cosine(probe, template) for template in templates))

    def verify_pair(self, message: bytes) -> float:
        """The cosine of two faces that are not enrolled; the message holds both images' payloads."""
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


def open_service(
    deployment: Path,
    gallery: str,
    keyring: Keyring,
    *,
    index: str = "exact",
    threads: int = 0,
    precision: str = "float32",
    templates: TemplateKind | str | None = None,
    template_keys: Keyring | None = None,
) -> Service:
    """Load the server's graph, open the gallery and build the index; raises CheckpointError and GalleryError.

    `index` is one of those that `open_index` knows, `precision` one that `ppfr export` wrote; `templates` and
    `template_keys` are as for `Gallery`.
    """
    embedder = Embedder(deployment, threads=threads, precision=precision)
    contract = embedder.contract
    size = contract.embedding_size
    opened = Gallery(gallery, keyring, contract.id, size, templates=templates, template_keys=template_keys)
    # a server without the template key must fail here, not at its first query
    opened.protect(torch.ones(1, size))
    searched = open_index(index, size, keyring, contract.id, opened.template_key, threads=threads)
    synchronised = SynchronisedIndex(opened, searched)
    synchronised.build()
    synchronised.start()
    return Service(contract, opened, synchronised, Batcher(embedder.embed))


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first, second, dim=0))
