"""Resumable bulk work: an operator is called with batches of rows on several ranks; each result is one file."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_path, atomic_write
from ppfr.util.progress import progress_callback

Rows = npt.NDArray[np.int64]


class Operator(ABC):
    """One step of bulk work, a callable that can be pickled.

    Its result may depend on the rows alone, not on earlier calls or on the process: then the whole is the same for any
    number of ranks and after any stop.
    """

    @abstractmethod
    def __call__(self, rows: Rows) -> pa.Table:
        """The results of a batch of consecutive rows (n,) of the data set."""


class BulkJob:
    """`rows` rows of a data set through an operator, `chunk` at a time.

    Each batch becomes a part, a Parquet file in `folder`, where a stopped run goes on with those that are missing; rank
    r of `ranks` does every `world`-th part from r on. The folder is removed when the job ends well.
    """

    def __init__(self, folder: Path, rows: int, chunk: int, ranks: Ranks = Ranks()) -> None:
        self.folder = folder
        self.rows = rows
        self.chunk = chunk
        self.count = -(-rows // chunk)
        self.ranks = ranks
        self.done_before = sum(len(self.batch(part)) for part in range(self.count) if self.file(part).exists())

    @contextmanager
    def begun(self, plan: Mapping[str, object]) -> Iterator[None]:
        """Begin the job, or go on with one of the same `plan`; all ranks enter and leave together.

        The plan names what decides the results. Raises DataError when the folder holds parts of another plan, and when
        another process works there.
        """
        lock = FileLock(self.folder / "lock", timeout=0)
        # no rank begins before every rank has looked which parts are there
        self.ranks.barrier()
        self.ranks.on_first(lambda: self._claim(lock, {**plan, "chunk": self.chunk}))
        try:
            yield
            # others may still read the parts
            self.ranks.barrier()
            if self.ranks.first:
                self.remove()
        finally:
            lock.release()

    def apply(self, operator: Operator, title: str) -> None:
        """Do the missing parts of this rank; returns when all ranks are ready."""
        missing = [
            part for part in range(self.count)[self.ranks.rank :: self.ranks.world] if not self.file(part).exists()
        ]
        total = sum(len(self.batch(part)) for part in missing)
        done = 0
        with progress_callback(title) as progress:
            for part in missing:
                table = operator(self.batch(part))
                with atomic_path(self.file(part)) as temporary:
                    pq.write_table(table, temporary, compression="none")
                done += len(self.batch(part))
                progress(done, total)
        self.ranks.barrier()

    def batch(self, part: int) -> Rows:
        """The rows of a part."""
        return np.arange(part * self.chunk, min((part + 1) * self.chunk, self.rows))

    def file(self, part: int) -> Path:
        """Where a part lies when it is done."""
        return self.folder / f"{part:08d}.parquet"

    def results(self) -> Iterator[tuple[Rows, pa.Table]]:
        """The rows and the results of every part, in order; raises DataError for a damaged one."""
        for part in range(self.count):
            try:
                table = pq.read_table(self.file(part))
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{self.file(part)}: damaged ({error}); remove it, and its rows are done again"
                ) from error
            yield self.batch(part), table

    def remove(self) -> None:
        """Remove the folder with all parts."""
        shutil.rmtree(self.folder)

    def _claim(self, lock: FileLock, plan: Mapping[str, object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise DataError(f"{self.folder}: another process is writing it") from error
        try:
            self._compare(plan)
        except DataError:
            lock.release()
            raise

    def _compare(self, plan: Mapping[str, object]) -> None:
        file = self.folder / "plan.json"
        if not file.exists():
            atomic_write(file, json.dumps(plan, indent=2) + "\n")
            return
        try:
            begun = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); remove {self.folder} to start again") from error
        if changed := sorted(key for key in plan if begun.get(key) != plan[key]):
            raise DataError(
                f"{self.folder} holds parts with another {', '.join(changed)}; repeat the command that began them, or "
                "remove the folder"
            )
