"""Puts a server together from a deployment's folder and a gallery."""

from __future__ import annotations

from pathlib import Path

import torch

from ppfr.serving.crypto.templates import Kind
from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.runtime.batching import Batcher
from ppfr.serving.runtime.embedder import Embedder
from ppfr.serving.search.indexes import open_index
from ppfr.serving.search.keeper import IndexKeeper
from ppfr.serving.service import Service
from ppfr.util.keyring import Keyring


def open_service(
    deployment: Path,
    gallery: str,
    keyring: Keyring,
    *,
    index: str = "exact",
    threads: int = 0,
    precision: str = "float32",
    templates: Kind | str | None = None,
    template_keys: Keyring | None = None,
) -> Service:
    """Load the network, open the gallery and fill the index; raises CheckpointError and GalleryError.

    `index` is one of those that `open_index` knows, `precision` one that `ppfr export` wrote; `templates` and
    `template_keys` are as for `Gallery`.
    """
    embedder = Embedder(deployment, threads=threads, precision=precision)
    contract = embedder.contract
    size = contract.embedding_size
    opened = Gallery(gallery, keyring, contract.id, size, templates=templates, template_keys=template_keys)
    # a server without the template key is to end here, not at its first query
    opened.protect(torch.ones(1, size))
    keeper = IndexKeeper(opened, open_index(index, size, keyring, contract.id, opened.template_key))
    keeper.build()
    keeper.start()
    return Service(contract, opened, keeper, Batcher(embedder.embed))
