"""Encoded images with their identities, before any is decoded: what all formats of training data have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppfr.data.faceset import Indices, Skipped
from ppfr.util.errors import DataError


class Records(ABC):
    """Encoded images in a fixed order.

    `labels` (N,) int64 index `identities`; `names` (N) differ for each image, and are file names if `named`; `skipped`
    lists what the source named but could not give. `oblong` (M,) int64 are the rows whose images are not square, or
    None when nothing has decoded the images yet.
    """

    name: str
    identities: Sequence[str]
    labels: Indices
    names: Sequence[str]
    named: bool
    skipped: list[Skipped]
    oblong: Indices | None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def data(self, row: int) -> bytes:
        """The encoded image of a row, from any thread; raises DataError without naming the row."""

    @abstractmethod
    def place(self, row: int) -> str:
        """File and position of the image of a row, for messages."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the set does, as far as this shows without reading images."""


class FileRecords(Records):
    """Image files, as a folder or a CSV names them."""

    def __init__(self, name: str, paths: Sequence[Path], people: Sequence[str], skipped: Sequence[Skipped]) -> None:
        self.name = name
        self.paths = paths
        self.identities = sorted(set(people))
        position = {person: label for label, person in enumerate(self.identities)}
        self.labels = np.array([position[person] for person in people], np.int64)
        self.names = [str(path) for path in paths]
        self.named = True
        self.oblong = None
        self.skipped = list(skipped)

    def data(self, row: int) -> bytes:
        try:
            return self.paths[row].read_bytes()
        except OSError as error:
            reason = "file not found" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
            raise DataError(reason) from error

    def place(self, row: int) -> str:
        return str(self.paths[row])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row, path in enumerate(self.paths):
            person = self.identities[self.labels[row]]
            digest.update(f"{path.absolute()}\0{person}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """A hash of the paths, sizes and times of change of files."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(stats).encode(errors="surrogateescape")).hexdigest()


def first_reasons(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first few of what was skipped, for an error message."""
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    return named + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")
