"""Embeddings of a whole data set in one Parquet file, computed piece by piece on any number of processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ppfr.data.faceset import FaceSet, Indices
from ppfr.errors import DataError
from ppfr.evaluation.evaluate import Model, embed_faces
from ppfr.files import atomic_path, atomic_write
from ppfr.progress import track
from ppfr.ranks import Ranks

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
    folder = target.with_name(f"{target.name}.parts")
    plan = {
        "model": source,
        "data": faces.name,
        "names": hashlib.sha256("\n".join(faces.names).encode()).hexdigest(),
        "images": len(faces),
        "flip": flip,
        "seed": seed,
        "piece": piece,
    }
    ranks.on_first(lambda: _claim(folder, plan))
    pieces = range(-(-len(faces) // piece))
    for number in track(pieces[ranks.rank :: ranks.world], f"{faces.name}: embedding"):
        file = _piece_file(folder, number)
        if not file.exists():
            rows = np.arange(number * piece, min((number + 1) * piece, len(faces)))
            embeddings = embed_faces(model, faces, rows, flip=flip, seed=seed * 1_000_003 + number)
            with atomic_path(file) as temporary:
                pq.write_table(_table(faces, rows, embeddings), temporary, compression="zstd")
    ranks.barrier()
    ranks.on_first(lambda: _join(folder, target, len(pieces)))
    return target


def _claim(folder: Path, plan: dict[str, object]) -> None:
    """Begin a folder of pieces, or find it begun for the same plan."""
    file = folder / "plan.json"
    if file.exists():
        begun = json.loads(file.read_text())
        if changed := sorted(key for key in plan if begun.get(key) != plan[key]):
            raise DataError(
                f"{folder} holds pieces with another {', '.join(changed)}; repeat the command that began them, or "
                "remove the folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(plan, indent=2) + "\n")


def _piece_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.parquet"


def _table(faces: FaceSet, rows: Indices, embeddings: npt.NDArray[np.float32]) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    return pa.table(
        {
            "path": pa.array([faces.names[row] for row in rows.tolist()]),
            "identity": pa.array([faces.identities[label] for label in faces.labels[rows].tolist()]),
            "embedding": values,
        }
    )


def _join(folder: Path, target: Path, count: int) -> None:
    with atomic_path(target) as temporary:
        schema = pq.read_schema(_piece_file(folder, 0))
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in range(count):
                writer.write_table(pq.read_table(_piece_file(folder, number)))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
