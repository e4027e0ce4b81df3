"""Embeddings of a whole data set in one Parquet file, computed in parts on any number of processes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ppfr.data.faceset import FaceSet
from ppfr.distributed.bulk import BulkJob, Operator, Rows
from ppfr.distributed.process_group import Ranks
from ppfr.evaluation.evaluate import Model, embed_faces
from ppfr.util.files import atomic_path

# images of one part: what is computed again after a stop, and one row group of the file
_CHUNK = 2048


class EmbedFaces(Operator):
    """Embeds the images of a set; a method's random draws for a batch come from a generator seeded by its number."""

    def __init__(self, model: Model, faces: FaceSet, *, flip: bool, seed: int, chunk: int) -> None:
        self.model = model
        self.faces = faces
        self.flip = flip
        self.seed = seed
        self.chunk = chunk

    def __call__(self, rows: Rows) -> pa.Table:
        """Columns path, identity and embedding."""
        faces, number = self.faces, int(rows[0]) // self.chunk
        embeddings = embed_faces(self.model, faces, rows, flip=self.flip, seed=self.seed * 1_000_003 + number)
        return pa.table(
            {
                "path": pa.array([faces.names[row] for row in rows.tolist()]),
                "identity": pa.array([faces.identities[label] for label in faces.labels[rows].tolist()]),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1]),
            }
        )


def embed_to_parquet(
    model: Model,
    faces: FaceSet,
    target: Path | str,
    *,
    source: str,
    flip: bool = True,
    seed: int = 0,
    chunk: int = _CHUNK,
    ranks: Ranks = Ranks(),
) -> Path:
    """Write the columns path, identity and embedding (D float32, not normalised) of all faces, in the set's order.

    Ranks take every `world`-th part of `chunk` images, whose bytes depend on the part's number alone. So the file is
    the same for any number of ranks. Parts lie beside the target until all are there; a stopped run goes on with
    those that are missing. `source` identifies the model (its hash, say). Raises DataError when parts of another model,
    data set or setting lie there.
    """
    target = Path(target)
    job = BulkJob(target.with_name(f"{target.name}.parts"), len(faces), chunk, ranks)
    plan = {
        "model": source,
        "data": faces.name,
        "names": hashlib.sha256("\n".join(faces.names).encode()).hexdigest(),
        "images": len(faces),
        "flip": flip,
        "seed": seed,
    }
    with job.begun(plan):
        job.apply(EmbedFaces(model, faces, flip=flip, seed=seed, chunk=chunk), f"{faces.name}: embedding")
        ranks.on_first(lambda: _join(job, target))
    return target


def _join(job: BulkJob, target: Path) -> None:
    with atomic_path(target) as temporary:
        schema = pq.read_schema(job.file(0))
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for _, table in job.results():
                writer.write_table(table)
