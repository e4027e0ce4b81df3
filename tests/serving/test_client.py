"""The SDK against the real application: photos become payloads, faults of the network are got over, photos stay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from ppfr.methods import create
from ppfr.serving.client import AsyncClient, Candidate, Client
from ppfr.serving.deployment.export import export_method
from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http.app import create_app
from ppfr.serving.service import open_service
from ppfr.util.errors import DataError, ServiceError
from ppfr.util.keyring import Keyring
from support.deployments import SPEC


def crop(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Line(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Carries requests to the application, keeps what it carried, and first fails as often as asked."""

    def __init__(self, server: TestClient, faults: list[object]) -> None:
        self.server, self.faults = server, faults
        self.carried: list[bytes] = []
        self.keys: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.carried.append(str(request.url).encode() + str(request.headers).encode() + request.content)
        self.keys.append(request.headers.get("idempotency-key"))
        fault = self.faults.pop(0) if self.faults else None
        if fault == "lost request":
            raise httpx.ConnectError("no route")
        if isinstance(fault, int):
            return httpx.Response(fault, json={"message": "not now", "code": fault})
        headers = {name: value for name, value in request.headers.items() if name in ("x-api-key", "idempotency-key")}
        answer = self.server.request(
            request.method, request.url.raw_path.decode(), content=request.content, headers=headers
        )
        if fault == "lost answer":
            raise httpx.ReadTimeout("nothing came back")
        return httpx.Response(answer.status_code, content=answer.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(self.handle_request, request)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment whose client draws nothing: a photo always has the same template."""
    folder = tmp_path_factory.mktemp("steady")
    export_method(create("arcface", SPEC, seed=0), folder)
    return folder


@pytest.fixture
def line(deployment: Path, tmp_path: Path) -> Iterator[tuple[Line, str]]:
    """A server of the deployment that draws."""
    with listening(deployment, tmp_path) as both:
        yield both


@pytest.fixture
def steady_line(steady: Path, tmp_path: Path) -> Iterator[tuple[Line, str]]:
    with listening(steady, tmp_path) as both:
        yield both


@contextmanager
def listening(deployment: Path, tmp_path: Path) -> Iterator[tuple[Line, str]]:
    service = open_service(deployment, f"sqlite:///{tmp_path}/gallery.db", Keyring.create(), threads=1)
    _, key = service.gallery.api_keys.create("all", Role.ADMIN)
    with TestClient(create_app(service)) as server:
        yield Line(server, []), key


def test_enrol_recognise_verify(steady_line: tuple[Line, str], steady: Path, tmp_path: Path) -> None:
    carrier, key = steady_line
    cv2.imwrite(str(tmp_path / "b.png"), crop(1)[:, :, ::-1])
    with Client("http://server", steady, key, transport=carrier) as client:
        client.enrol(crop(0), "Ada / 1")
        client.enrol(tmp_path / "b.png", "Björn")
        found = client.recognise(crop(1), limit=5)
        assert [one.subject for one in found] == ["Björn", "Ada / 1"]
        # templates are kept with 16 bits a value
        assert found[0].similarity == pytest.approx(1, abs=1e-3) and found[1].similarity < 0.998
        assert client.verify(tmp_path / "b.png", "Björn") == pytest.approx(1, abs=1e-3)
        assert client.verify(crop(0), "Björn") == pytest.approx(found[1].similarity, abs=1e-3)
        with pytest.raises(ServiceError, match="refused with 404: there is no such subject") as error:
            client.verify(crop(0), "nobody")
        assert error.value.status == 404


def test_no_request_holds_the_photo(line: tuple[Line, str], deployment: Path, tmp_path: Path) -> None:
    carrier, key = line
    image = crop(0)
    file = tmp_path / "secret-name.png"
    cv2.imwrite(str(file), image[:, :, ::-1])
    with Client("http://server", deployment, key, transport=carrier) as client:
        client.enrol(file, "Ada")
        client.recognise(file)
        client.verify(file, "Ada")
    pieces = [image[0].tobytes(), image[:, 0].tobytes(), image[..., 0][0].tobytes(), b"\x89PNG", b"\xff\xd8\xff"]
    for carried in carrier.carried:
        assert file.read_bytes()[40:80] not in carried and b"secret-name" not in carried
        assert not any(piece in carried for piece in pieces)


@pytest.mark.parametrize("faults", [["lost request"], ["lost answer"], [503, 429], ["lost answer", 502, "lost answer"]])
def test_faults_are_got_over_and_nothing_is_enrolled_twice(
    line: tuple[Line, str], deployment: Path, faults: list[object]
) -> None:
    carrier, key = line
    carrier.faults = list(faults)
    with Client("http://server", deployment, key, transport=carrier, pause=0.001) as client:
        client.enrol(crop(0), "Ada")
    assert len(carrier.carried) == len(faults) + 1
    assert len(set(carrier.keys)) == 1 and carrier.keys[0]
    assert carrier.server.get("/api/v1/recognition/faces", headers={"x-api-key": key}).json()["total_elements"] == 1


def test_it_gives_up_and_says_why(line: tuple[Line, str], deployment: Path) -> None:
    carrier, key = line
    carrier.faults = ["lost request"] * 9
    with Client("http://server", deployment, key, transport=carrier, retries=2, pause=0.001) as client:
        with pytest.raises(ServiceError, match=r"http://server.* does not answer \(no route\)"):
            client.recognise(crop(0))
        assert len(carrier.carried) == 3
    with Client("http://server", deployment, "wrong", transport=carrier, pause=0.001) as client:
        carrier.faults = []
        with pytest.raises(ServiceError, match="refused with 401: x-api-key is missing or unknown"):
            client.recognise(crop(0))
        # asking again would not help
        assert len(carrier.carried) == 4


def test_without_a_face_nothing_is_sent(line: tuple[Line, str], deployment: Path) -> None:
    carrier, key = line

    class Blind:
        def detect(self, image: np.ndarray) -> list[object]:
            return []

    client = Client("http://server", deployment, key, detector=Blind(), transport=carrier)  # type: ignore[arg-type]
    with client, pytest.raises(DataError, match="no face was found"):
        client.enrol(crop(0), "Ada")
    assert not carrier.carried


def test_the_asynchronous_client_does_the_same(steady_line: tuple[Line, str], steady: Path) -> None:
    carrier, key = steady_line
    carrier.faults = ["lost answer"]

    async def ask() -> tuple[list[Candidate], float, float]:
        async with AsyncClient("http://server", steady, key, transport=carrier, pause=0.001) as client:
            await client.enrol(crop(0), "Ada")
            await asyncio.gather(*(client.enrol(crop(number), f"other {number}") for number in (1, 2)))
            found = await client.recognise(crop(0), limit=3)
            return found, await client.verify(crop(0), "Ada"), await client.verify(crop(1), "Ada")

    found, own, foreign = asyncio.run(ask())
    assert found[0].subject == "Ada" and {one.subject for one in found[1:]} == {"other 1", "other 2"}
    assert found[0].similarity == pytest.approx(1, abs=1e-3) and own == pytest.approx(1, abs=1e-3)
    assert max(foreign, found[1].similarity) < 0.998
