"""Parquet files of embeddings: the same bytes for any number of ranks, and after any stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ppfr
from ppfr.data.faceset import FaceSet
from ppfr.distributed.process_group import Ranks
from ppfr.evaluation import embeddings as module
from ppfr.evaluation.embeddings import embed_to_parquet
from ppfr.evaluation.evaluate import embed_faces
from ppfr.util.errors import DataError
from support.processes import on_ranks


def faces(count: int = 23) -> FaceSet:
    images = np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)
    people = [str(n % 4) for n in range(count)]
    return FaceSet("noise", people, lambda index: images[index], names=[f"{n}.png" for n in range(count)])


def model() -> ppfr.Method:
    """One with random draws, which must not hang on who makes them."""
    return ppfr.create("partialface", "mobilefacenet", 0, width=0.125, embedding_size=16).eval()


def embed(target: Path, **changes: object) -> bytes:
    settings = {"source": "m", "chunk": 5, **changes}
    return embed_to_parquet(model(), faces(), target, **settings).read_bytes()  # type: ignore[arg-type]


def test_columns_and_values(tmp_path: Path) -> None:
    embed(tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet").to_pydict()
    assert table["path"] == [f"{n}.png" for n in range(23)]
    assert table["identity"] == [str(n % 4) for n in range(23)]
    # part 1 as a plain call makes it
    expected = embed_faces(model(), faces(), range(5, 10), seed=1)
    np.testing.assert_array_equal(np.array(table["embedding"][5:10], np.float32), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet"]


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_bytes_on_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    alone = embed(tmp_path / "alone.parquet")

    def work() -> None:
        embed(tmp_path / "shared.parquet", ranks=Ranks.from_environment())

    on_ranks(world, work)
    assert (tmp_path / "shared.parquet").read_bytes() == alone


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embed(tmp_path / "whole.parquet")
    calls: list[int] = []

    def counted(*arguments: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed_faces(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "embed_faces", counted)
    target = tmp_path / "broken.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed(target)
    assert not target.exists()
    with pytest.raises(DataError, match=r"broken\.parquet\.parts holds parts with another flip, model"):
        embed(target, source="another", flip=False)
    assert embed(target) == whole
    # two parts were there, one was begun, three were left
    assert len(calls) == 6
