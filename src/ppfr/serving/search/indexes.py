"""Search indexes by name."""

from __future__ import annotations

import os

from ppfr.serving.crypto.rotation import KeyedRotation
from ppfr.serving.search.index import ExactIndex, Index
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

IN_MEMORY = ("exact", "approximate")
# the environment variable with the cluster's token: a command line is visible to other users
TOKEN = "PPFR_MILVUS_TOKEN"


def open_index(
    kind: str, size: int, keyring: Keyring, contract: str, template_key: str = "", *, threads: int = 0
) -> Index:
    """An index for templates of length `size`: `exact`, `approximate`, or `milvus:URI` (a cluster or a local file).

    Milvus gets templates rotated by a key that follows from the current one, in a collection named after contract and
    key, and after the template key if there is one: under another, faces have other templates. Its token comes from the
    environment variable PPFR_MILVUS_TOKEN. Raises GalleryError.
    """
    if kind == "exact":
        return ExactIndex(size, threads=threads)
    if kind == "approximate":
        from ppfr.serving.search.approximate import ApproximateIndex

        return ApproximateIndex(size)
    engine, _, uri = kind.partition(":")
    if engine != "milvus" or not uri:
        raise GalleryError(f"index {kind!r}; expected exact, approximate or milvus:URI")
    from ppfr.serving.search.milvus import MilvusIndex

    rotation = KeyedRotation(keyring.derive("milvus rotation"), size)
    name = "_".join(["ppfr", contract, keyring.current, *filter(None, [template_key])])
    return MilvusIndex(uri, name, rotation, token=os.environ.get(TOKEN, ""))


__all__ = ["IN_MEMORY", "TOKEN", "open_index"]
