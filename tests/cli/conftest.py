"""Runs that the tests of the command line start from."""

from __future__ import annotations

from pathlib import Path

import pytest

import ppfr
from support.commands import FAST, TINY, ppfr_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PartialFace run, trained once by `ppfr train`; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("trained") / "partialface"
    assert ppfr_command("train", "partialface", "--data", TINY, "--out", folder, *FAST) == 0
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method that nobody trained, where figures need not be good."""
    folder = tmp_path_factory.mktemp("untrained") / "arcface"
    ppfr.save(ppfr.create("arcface", "mobilefacenet", width=0.125, embedding_size=16), folder)
    return folder
