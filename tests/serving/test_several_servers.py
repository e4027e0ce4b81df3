"""Several servers on one database: what one enrols, all know within a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppfr.serving.service import Service, open_service
from ppfr.util.keyring import Keyring


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgres),
        pytest.param("postgresql and milvus", marks=pytest.mark.postgres),
    ]
)
def servers(request: pytest.FixtureRequest, deployment: Path, tmp_path: Path) -> Iterator[list[Service]]:
    url = f"sqlite:///{tmp_path}/gallery.db" if request.param == "sqlite" else request.getfixturevalue("postgres")()
    index = "exact"
    if request.param.endswith("milvus"):
        pytest.importorskip("milvus_lite")
        # a local file is for one process, which both servers are in here
        index = f"milvus:{tmp_path / 'milvus.db'}"
    keyring = Keyring.create()
    opened = [open_service(deployment, url, keyring, index=index, threads=1) for _ in range(2)]
    yield opened
    for service in opened:
        service.close()


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_what_one_server_enrols_or_deletes_the_other_knows(servers: list[Service], send: Callable[..., bytes]) -> None:
    here, there = servers
    here.enrol(send(0), "Ada")
    # half a second between looks, and as much again for a busy machine's sake several times over
    assert there.index.interval <= 0.5
    assert within(20, lambda: [one.subject for one in there.recognise(send(0))] == ["Ada"])
    there.enrol(send(1), "Chen")
    there.gallery.subjects.delete("Ada")
    assert within(20, lambda: [one.subject for one in here.recognise(send(0), 5)] == ["Chen"])
    assert within(20, lambda: len(here.index) == len(there.index) == 1)


def test_a_server_that_starts_later_knows_everything(
    servers: list[Service], send: Callable[..., bytes], deployment: Path
) -> None:
    here, there = servers
    for number in range(3):
        here.enrol(send(number), f"person {number}")
    here.gallery.subjects.delete("person 1")
    there.index.refresh()
    assert there.index.index.keys() == {face.id for face in here.gallery.faces.find()}
