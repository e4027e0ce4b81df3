"""A PostgreSQL of the tests' own, from Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

_BINARIES = Path("/usr/lib/postgresql")


@contextmanager
def postgresql() -> Iterator[Callable[[], str]]:
    """A running server that listens at a socket of its own; each call makes a database and returns its address.

    PostgreSQL refuses to run as root: there it runs as the user `postgres`, which Debian's package adds. Skips with a
    reason where that is not to be had.
    """
    installed = sorted(_BINARIES.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not installed:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    binaries = installed[-1].parent
    root = os.geteuid() == 0
    if root and shutil.which("runuser") is None:
        pytest.skip("needs runuser, to start PostgreSQL as another user than root")
    # short, as sockets' names must be, and where another user may go
    folder = Path(tempfile.mkdtemp(prefix="ppfr-pg-", dir="/tmp"))

    def run(*arguments: object) -> None:
        command = [*(["runuser", "-u", "postgres", "--"] if root else []), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    try:
        if root:
            shutil.chown(folder, "postgres", "postgres")
        data = folder / "data"
        run(
            binaries / "initdb",
            "--pgdata",
            data,
            "--auth=trust",
            "--username=postgres",
            "--no-sync",
            "--no-locale",
            "-E",
            "UTF8",
        )
        control = [binaries / "pg_ctl", "--pgdata", data, "--wait", "--silent"]
        run(*control, "--log", folder / "log", "--options", f"-c listen_addresses='' -k {folder}", "start")
        try:
            yield lambda: _database(folder)
        finally:
            run(*control, "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _database(folder: Path) -> str:
    name = f"d{uuid.uuid4().hex}"
    engine = sa.create_engine(_address(folder, "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return _address(folder, name)


def _address(folder: Path, name: str) -> str:
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"
