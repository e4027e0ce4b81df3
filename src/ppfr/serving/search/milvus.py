"""Search beyond one machine: a Milvus collection of rotated templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from pymilvus import DataType, MilvusClient, MilvusException

from ppfr.serving.crypto.rotation import KeyedRotation
from ppfr.serving.search.index import Match, SearchUnavailable, Vectors, unit_queries, unit_templates
from ppfr.util.errors import GalleryError

_CHUNK = 500
# ids are the gallery's, UUIDs
_ID_LENGTH = 64


class MilvusIndex:
    """Templates by key in a Milvus collection, searched by cosine.

    `uri` is a cluster's address, or a file name for milvus-lite. Every template is rotated by the servers' key before
    it leaves, so Milvus holds nothing that another recogniser's templates could be compared with. A collection `name`
    stands for one key: after a rotation of keys servers use another one. Raises SearchUnavailable where Milvus cannot
    be reached or refuses.
    """

    def __init__(self, uri: str, name: str, rotation: KeyedRotation, *, token: str = "", kind: str = "FLAT") -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", name):
            raise GalleryError(f"collection name {name!r}; expected letters, digits and underscores")
        self._name, self._rotation, self._uri = name, rotation, uri
        self._client: Any = self._asked(lambda: MilvusClient(uri, token=token))
        if not self._asked(lambda: self._client.has_collection(name)):
            self._asked(lambda: self._create(kind))

    def __len__(self) -> int:
        found = self._asked(
            lambda: self._client.query(self._name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        )
        return int(found[0]["count(*)"])

    def add(self, keys: Sequence[str], templates: npt.ArrayLike) -> None:
        """As `Index.add`."""
        rows = self._rotated(unit_templates(keys, templates, self._rotation.size))
        for first in range(0, len(keys), _CHUNK):
            part = [
                {"id": key, "vector": row}
                for key, row in zip(keys[first : first + _CHUNK], rows[first : first + _CHUNK], strict=True)
            ]
            self._asked(lambda part=part: self._client.upsert(self._name, part))

    def remove(self, keys: Sequence[str]) -> None:
        """As `Index.remove`."""
        for first in range(0, len(keys), _CHUNK):
            part = list(keys[first : first + _CHUNK])
            self._asked(lambda part=part: self._client.delete(self._name, ids=part))

    def search(self, queries: npt.ArrayLike, limit: int) -> list[list[Match]]:
        """As `Index.search`."""
        rows = self._rotated(unit_queries(queries, self._rotation.size, limit))
        found = self._asked(
            lambda: self._client.search(
                self._name,
                data=rows,
                limit=limit,
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
            )
        )
        return [[Match(str(hit["id"]), float(hit["distance"])) for hit in hits] for hits in found]

    def keys(self) -> set[str]:
        """As `Index.keys`."""
        held: set[str] = set()
        rows = self._asked(
            lambda: self._client.query_iterator(
                self._name, batch_size=_CHUNK, filter="", output_fields=["id"], consistency_level="Strong"
            )
        )
        while part := self._asked(rows.next):
            held.update(str(row["id"]) for row in part)
        rows.close()
        return held

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _create(self, kind: str) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_ID_LENGTH)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._rotation.size)
        index = self._client.prepare_index_params()
        index.add_index(field_name="vector", index_type=kind, metric_type="IP")
        self._client.create_collection(self._name, schema=schema, index_params=index, consistency_level="Strong")

    def _rotated(self, units: Vectors) -> list[list[float]]:
        rotated: list[list[float]] = self._rotation(torch.from_numpy(units)).tolist()
        return rotated

    def _asked(self, ask: Any) -> Any:
        try:
            return ask()
        except (MilvusException, ConnectionError) as error:
            raise SearchUnavailable(f"Milvus at {self._uri}: {error}") from error


__all__ = ["MilvusIndex"]
