"""Bulk work in parts: resumed, shared among ranks, and refused where it is another's."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

from ppfr.distributed.bulk import BulkJob, Operator, Rows
from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from support.processes import on_ranks


class Squares(Operator):
    """Squares of row numbers; interrupted at the call that holds row `stop_at`, and it notes its calls in a file."""

    def __init__(self, notes: Path | None = None, stop_at: int | None = None) -> None:
        self.notes = notes
        self.stop_at = stop_at

    def __call__(self, rows: Rows) -> pa.Table:
        if self.stop_at is not None and self.stop_at in rows:
            raise KeyboardInterrupt
        if self.notes is not None:
            with open(self.notes, "a") as stream:
                stream.write(f"{rows[0]}\n")
        return pa.table({"square": rows**2})


def squares(folder: Path, operator: Operator, plan: object = "squares", ranks: Ranks = Ranks()) -> list[int]:
    job = BulkJob(folder / "job", 10, 3, ranks)
    with job.begun({"plan": plan}):
        job.apply(operator, "squares")
        return [value for _, table in job.results() for value in table["square"].to_pylist()]


def test_results_come_in_order_and_the_folder_goes(tmp_path: Path) -> None:
    assert squares(tmp_path, Squares()) == [n**2 for n in range(10)]
    assert not (tmp_path / "job").exists()


def test_rows_of_the_last_part(tmp_path: Path) -> None:
    job = BulkJob(tmp_path / "job", 10, 3)
    assert [job.batch(part).tolist() for part in range(job.count)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_a_stopped_job_does_only_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path, Squares(stop_at=6))
    assert BulkJob(tmp_path / "job", 10, 3).done_before == 6
    assert squares(tmp_path, Squares(tmp_path / "notes")) == [n**2 for n in range(10)]
    assert (tmp_path / "notes").read_text().split() == ["6", "9"]


def test_ranks_share_the_parts(tmp_path: Path) -> None:
    def work() -> list[int]:
        ranks = Ranks.from_environment()
        return squares(tmp_path, Squares(tmp_path / f"notes{ranks.rank}"), ranks=ranks)

    assert on_ranks(2, work) == [[n**2 for n in range(10)]] * 2
    assert [(tmp_path / f"notes{rank}").read_text().split() for rank in range(2)] == [["0", "6"], ["3", "9"]]


def test_another_plan_is_refused_until_the_folder_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path, Squares(stop_at=6))
    with pytest.raises(DataError, match=r"job holds parts with another plan; repeat the command that began them"):
        squares(tmp_path, Squares(), plan="cubes")
    # the refusal leaves the job as it was
    assert squares(tmp_path, Squares()) == [n**2 for n in range(10)]


def test_a_damaged_part_and_a_locked_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path, Squares(stop_at=6))
    part = tmp_path / "job" / "00000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"00000001\.parquet: damaged .*; remove it, and its rows are done again"):
        squares(tmp_path, Squares())
    with FileLock(tmp_path / "job" / "lock"), pytest.raises(DataError, match="another process is writing it"):
        squares(tmp_path, Squares())


def test_an_operator_can_be_pickled() -> None:
    there = pickle.loads(pickle.dumps(Squares()))
    assert there(np.arange(3))["square"].to_pylist() == [0, 1, 4]
