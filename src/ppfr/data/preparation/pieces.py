"""What came of a piece of the photographs, on disk between cutting and writing the set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppfr.data.detection.detector import Detection
from ppfr.data.preparation.choosing import Choice, Refusal
from ppfr.data.preparation.cutting import Crop, Outcome
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_path

# names may be no UTF-8; float64 keeps detectors' numbers of any type as they are
_SCHEMA = pa.schema(
    [
        ("photograph", pa.int32()),
        ("reason", pa.binary()),
        ("detail", pa.binary()),
        ("jpeg", pa.binary()),
        ("identity", pa.binary()),
        ("score", pa.float64()),
        ("box", pa.list_(pa.float64())),
        ("landmarks", pa.list_(pa.float64())),
    ]
)


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write what came of consecutive photographs, whole or not at all."""
    rows: list[dict[str, Any]] = []
    for number, outcome in enumerate(outcomes):
        for jpeg, (face, identity) in outcome.crops:
            rows.append(
                {
                    "photograph": number,
                    "jpeg": jpeg,
                    "identity": _encode(identity),
                    "score": face.score,
                    "box": face.box.tolist(),
                    "landmarks": face.landmarks.ravel().tolist(),
                }
            )
        for reason, detail in outcome.refused:
            rows.append({"photograph": number, "reason": _encode(reason), "detail": _encode(detail)})
    with atomic_path(path) as temporary:
        # JPEG does not become smaller
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary, compression="none")


def load_outcomes(path: Path, count: int) -> list[Outcome]:
    """What came of `count` photographs; raises DataError when the file is damaged."""
    crops: list[list[Crop]] = [[] for _ in range(count)]
    refused: list[list[Refusal]] = [[] for _ in range(count)]
    try:
        for row in pq.read_table(path, schema=_SCHEMA).to_pylist():
            if row["reason"] is None:
                landmarks = np.array(row["landmarks"]).reshape(5, 2)
                face = Detection(np.array(row["box"]), row["score"], landmarks)
                crops[row["photograph"]].append(Crop(row["jpeg"], Choice(face, _decode(row["identity"]))))
            else:
                refused[row["photograph"]].append(Refusal(_decode(row["reason"]), _decode(row["detail"])))
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it, and its photographs are looked at again") from error
    return [Outcome(*found) for found in zip(crops, refused, strict=True)]


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
