"""Embeddings of a whole data set in one Parquet file, computed piece by piece on any number of processes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ppfr.data.faceset import FaceSet, Indices
from ppfr.distributed.pieces import Pieces
from ppfr.distributed.process_group import Ranks
from ppfr.evaluation.evaluate import Model, embed_faces
from ppfr.util.files import atomic_path
from ppfr.util.progress import track

# images of one piece: what is computed again after a stop, and one row group of the file
PIECE = 2048


def embed_to_parquet(
    model: Model,
    faces: FaceSet,
    target: Path | str,
    *,
    source: str,
    flip: bool = True,
    seed: int = 0,
    piece: int = PIECE,
    ranks: Ranks = Ranks(),
) -> Path:
    """Write the columns path, identity and embedding (D float32, not normalised) of all faces, in the set's order.

    Ranks take every `world`-th piece of `piece` images. A piece's bytes depend on its number alone: its images go in
    batches of their own, and a method's draws come from a generator seeded by `seed` and the number. So the file is the
    same whatever the number of ranks. Pieces lie beside the target until all are there; a stopped run goes on with
    those that are missing. `source` names the model (its hash, say). Raises DataError when pieces of another model,
    data set or setting lie there.
    """
    target = Path(target)
    pieces = Pieces(target.with_name(f"{target.name}.parts"), -(-len(faces) // piece), ".parquet", ranks)
    pieces.claim(
        {
            "model": source,
            "data": faces.name,
            "names": hashlib.sha256("\n".join(faces.names).encode()).hexdigest(),
            "images": len(faces),
            "flip": flip,
            "seed": seed,
            "piece": piece,
        }
    )
    for number in track(pieces.own(), f"{faces.name}: embedding"):
        file = pieces.file(number)
        if not file.exists():
            rows = np.arange(number * piece, min((number + 1) * piece, len(faces)))
            embeddings = embed_faces(model, faces, rows, flip=flip, seed=seed * 1_000_003 + number)
            with atomic_path(file) as temporary:
                pq.write_table(_table(faces, rows, embeddings), temporary, compression="zstd")
    ranks.barrier()
    ranks.on_first(lambda: _join(pieces, target))
    return target


def _table(faces: FaceSet, rows: Indices, embeddings: npt.NDArray[np.float32]) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    return pa.table(
        {
            "path": pa.array([faces.names[row] for row in rows.tolist()]),
            "identity": pa.array([faces.identities[label] for label in faces.labels[rows].tolist()]),
            "embedding": values,
        }
    )


def _join(pieces: Pieces, target: Path) -> None:
    with atomic_path(target) as temporary:
        schema = pq.read_schema(pieces.file(0))
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in range(pieces.count):
                writer.write_table(pq.read_table(pieces.file(number)))
    for file in pieces.folder.iterdir():
        file.unlink()
    pieces.folder.rmdir()
