"""Puts a server together from a deployment's folder and a gallery."""

from __future__ import annotations

from pathlib import Path

from ppfr.serving.batching import Batcher
from ppfr.serving.export import SERVER, Embedder
from ppfr.serving.gallery import Gallery
from ppfr.serving.indexes import open_index
from ppfr.serving.keeper import IndexKeeper
from ppfr.serving.keyring import Keyring
from ppfr.serving.service import Service


def open_service(
    deployment: Path, gallery: str, keyring: Keyring, *, index: str = "exact", threads: int = 0
) -> Service:
    """Load the network, open the gallery and fill the index; raises CheckpointError and GalleryError.

    `index` is one of those that `open_index` knows.
    """
    folder = deployment / SERVER if (deployment / SERVER).is_dir() else deployment
    embedder = Embedder(folder, threads=threads)
    contract = embedder.contract
    opened = Gallery(gallery, keyring, contract.id, contract.embedding_size)
    keeper = IndexKeeper(opened, open_index(index, contract.embedding_size, keyring, contract.id))
    keeper.build()
    keeper.start()
    return Service(contract, opened, keeper, Batcher(embedder.embed))
