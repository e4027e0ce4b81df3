"""The HTTP routes: what they answer, whom they refuse, and that nothing sent to them makes them fail."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from ppfr.methods import Payload, PayloadSchema, TensorSpec
from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http.app import ServerLimits, create_app
from ppfr.serving.http.limits import RateLimit
from ppfr.serving.runtime.batching import Batcher
from ppfr.serving.search.index import SearchUnavailable
from ppfr.serving.service import Service, open_service
from ppfr.util.errors import ServiceError
from ppfr.util.keyring import Keyring

Send = Callable[..., bytes]
API = "/api/v1/recognition"


@pytest.fixture
def service(deployment: Path, tmp_path: Path) -> Service:
    return open_service(deployment, f"sqlite:///{tmp_path}/gallery.db", Keyring.create(), threads=1)


@pytest.fixture
def keys(service: Service) -> dict[str, dict[str, str]]:
    return {str(role): {"x-api-key": service.gallery.api_keys.create(role, role)[1]} for role in Role}


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, ServerLimits(rate=1e6, burst=10**6)), raise_server_exceptions=False) as client:
        yield client


def test_enrol_recognise_verify_and_forget(http: TestClient, keys: dict, send: Send) -> None:
    enrol, ask = keys["enrol"], keys["recognise"]
    faces = {}
    for number, name in enumerate(["Ada", "Björn / ?", "Chen"]):
        answer = http.post(f"{API}/faces", params={"subject": name}, content=send(number), headers=enrol)
        assert answer.status_code == 201
        faces[name] = answer.json()["image_id"]
    found = http.post(f"{API}/recognize", params={"limit": 2}, content=send(1), headers=ask).json()
    subjects = found["result"][0]["subjects"]
    assert len(subjects) == 2 and subjects[0]["subject"] == "Björn / ?"
    assert subjects[0]["similarity"] > 0.99 > subjects[1]["similarity"]
    same = http.post(f"{API}/faces/{faces['Chen']}/verify", content=send(2), headers=ask).json()
    assert same["result"][0]["subject"] == "Chen" and same["result"][0]["similarity"] > 0.99
    pair = http.post("/api/v1/verification/verify", content=send(2, 2), headers=ask).json()
    assert pair["result"][0]["face_matches"][0]["similarity"] > 0.5
    assert http.get(f"{API}/subjects", headers=enrol).json() == {"subjects": sorted(faces)}
    listed = http.get(f"{API}/faces", params={"size": 2}, headers=enrol).json()
    assert len(listed["faces"]) == 2 and listed["total_elements"] == 3 and listed["total_pages"] == 2
    renamed = http.put(f"{API}/subjects/Ada", json={"subject": "Ada L."}, headers=enrol)
    assert renamed.json() == {"updated": True}
    assert http.delete(f"{API}/subjects/Chen", headers=enrol).json() == {"subject": "Chen"}
    left = http.post(f"{API}/recognize", params={"limit": 9}, content=send(2), headers=ask).json()
    assert {one["subject"] for one in left["result"][0]["subjects"]} == {"Ada L.", "Björn / ?"}
    assert http.post(f"{API}/faces/{faces['Chen']}/verify", content=send(2), headers=ask).status_code == 404
    assert http.delete(f"{API}/faces", params={"subject": "Ada L."}, headers=enrol).json() == {"deleted": 1}
    assert http.delete(f"{API}/subjects", headers=keys["admin"]).json() == {"deleted": 2}


def test_many_faces_of_one_subject_do_not_hide_the_others(http: TestClient, keys: dict, send: Send) -> None:
    for draw in range(6):
        http.post(f"{API}/faces", params={"subject": "Ada"}, content=send(0, draw=draw), headers=keys["enrol"])
    http.post(f"{API}/faces", params={"subject": "Chen"}, content=send(1), headers=keys["enrol"])
    found = http.post(f"{API}/recognize", params={"limit": 2}, content=send(0), headers=keys["recognise"]).json()
    assert [one["subject"] for one in found["result"][0]["subjects"]] == ["Ada", "Chen"]


def test_repeating_an_enrolment_enrols_once(http: TestClient, keys: dict, send: Send) -> None:
    headers = keys["enrol"] | {"Idempotency-Key": "a-key-of-the-client"}
    message = send(0)
    answers = [
        http.post(f"{API}/faces", params={"subject": "Ada"}, content=message, headers=headers).json() for _ in range(3)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert http.get(f"{API}/faces", headers=keys["enrol"]).json()["total_elements"] == 1
    for subject, content in (("Chen", message), ("Ada", send(1))):
        other = http.post(f"{API}/faces", params={"subject": subject}, content=content, headers=headers)
        assert other.status_code == 400 and "used for another face" in other.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", f"{API}/subjects", {"enrol", "admin"}),
        ("POST", f"{API}/faces?subject=x", {"enrol", "admin"}),
        ("POST", f"{API}/recognize", {"recognise", "admin"}),
        ("POST", f"{API}/faces/none/verify", {"recognise", "admin"}),
        ("POST", "/api/v1/verification/verify", {"recognise", "admin"}),
        ("DELETE", f"{API}/subjects", {"admin"}),
    ],
)
def test_keys_open_what_they_are_for(http: TestClient, keys: dict, method: str, path: str, allowed: set[str]) -> None:
    for headers in ({}, {"x-api-key": "guess"}):
        answer = http.request(method, path, headers=headers)
        assert answer.status_code == 401 and answer.json() == {
            "message": "x-api-key is missing or unknown",
            "code": 401,
        }
    for role, headers in keys.items():
        status = http.request(method, path, headers=headers).status_code
        assert (status == 403) == (role not in allowed)


def test_a_revoked_key_opens_nothing(http: TestClient, service: Service, keys: dict) -> None:
    for key in service.gallery.api_keys.all():
        service.gallery.api_keys.revoke(key.id)
    assert http.get(f"{API}/subjects", headers=keys["admin"]).status_code == 401


@pytest.mark.parametrize("path", [f"{API}/faces?subject=x", f"{API}/recognize", "/api/v1/verification/verify"])
def test_what_is_no_payload_of_this_deployment_is_refused(http: TestClient, keys: dict, send: Send, path: str) -> None:
    schema = PayloadSchema("partialface", {"channels": TensorSpec((27, 32, 32), "channels")})
    foreign = Payload(schema, {"channels": torch.zeros(1, 27, 32, 32)}).to_bytes(contract="another")
    for body in (b"", b"\xff\xd8\xff JPEG", send(0)[:-5], foreign, send(0, 1, 2)):
        answer = http.post(path, content=body, headers=keys["admin"])
        assert answer.status_code == 400 and set(answer.json()) == {"message", "code"}
    assert http.post(path, content=bytes(10**6), headers=keys["admin"]).status_code == 413


def test_mutated_payloads_never_make_it_fail(http: TestClient, keys: dict, send: Send) -> None:
    generator = np.random.default_rng(0)
    whole = send(0)
    for _ in range(150):
        body = bytearray(whole)
        for place in generator.integers(len(body), size=generator.integers(1, 5)):
            body[place] = generator.integers(256)
        assert http.post(f"{API}/recognize", content=bytes(body), headers=keys["recognise"]).status_code in (200, 400)


def test_errors_have_one_shape(http: TestClient, keys: dict) -> None:
    for method, path in [
        ("GET", "/nowhere"),
        ("PATCH", f"{API}/subjects"),
        ("DELETE", f"{API}/subjects/nobody"),
        ("DELETE", f"{API}/faces/nothing"),
        ("POST", f"{API}/subjects"),
        ("GET", f"{API}/faces?size=0"),
    ]:
        answer = http.request(method, path, headers=keys["admin"])
        assert 400 <= answer.status_code < 500
        assert set(answer.json()) == {"message", "code"} and answer.json()["code"] == answer.status_code


@pytest.mark.parametrize("name", ["../etc/passwd", "a\r\nx: y", "'; drop table faces; --", "ü" * 255, "{7*7}"])
def test_names_are_only_names(http: TestClient, keys: dict, send: Send, name: str) -> None:
    answer = http.post(f"{API}/subjects", json={"subject": name}, headers=keys["enrol"])
    if "\n" in name:
        assert answer.status_code == 400
        return
    assert answer.json() == {"subject": name}
    assert http.get(f"{API}/subjects", headers=keys["enrol"]).json() == {"subjects": [name]}
    path = f"{API}/subjects/{quote(name, safe='')}"
    assert http.delete(path, headers=keys["enrol"]).json() == {"subject": name}


def test_logs_and_metrics_name_routes_not_people(
    http: TestClient, keys: dict, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ppfr.serving.access"):
        http.delete(f"{API}/subjects/Ada Lovelace", headers=keys["enrol"])
    line = json.loads(caplog.records[-1].message)
    assert line["route"].endswith("/subjects/{subject:path}") and line["status"] == 404
    text = http.get("/metrics").text
    assert "ppfr_requests_total" in text and 'status="404"' in text
    assert "Ada" not in text + caplog.text


def test_health_names_the_contract(http: TestClient, service: Service) -> None:
    assert http.get("/healthz").json() == {"status": "ok", "contract": service.contract.id}


def test_an_index_or_database_that_is_away_is_a_reason_to_ask_again(
    http: TestClient, service: Service, keys: dict, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise SearchUnavailable("Milvus at http://inside:19530 does not answer")

    monkeypatch.setattr(service.index.index, "search", away)
    monkeypatch.setattr(service.index.index, "add", away)
    # what was committed is acknowledged; the index follows when it is back
    assert http.post(f"{API}/faces?subject=Ada", content=send(0), headers=keys["enrol"]).status_code == 201
    answer = http.post(f"{API}/recognize", content=send(0), headers=keys["recognise"])
    assert answer.status_code == 503 and answer.headers["retry-after"] and "inside" not in answer.text
    monkeypatch.undo()
    service.index.try_refresh()
    found = http.post(f"{API}/recognize", content=send(0), headers=keys["recognise"])
    assert found.json()["result"][0]["subjects"][0]["subject"] == "Ada"

    def broken(*_: object) -> None:
        raise OperationalError("select", {}, Exception("the password is hidden"))

    monkeypatch.setattr(service.gallery.subjects, "names", broken)
    answer = http.get(f"{API}/subjects", headers=keys["enrol"])
    assert answer.status_code == 503 and "hidden" not in answer.text


def test_too_many_requests_are_put_off(service: Service, keys: dict) -> None:
    with TestClient(create_app(service, ServerLimits(rate=0.01, burst=2))) as http:
        statuses = [http.get(f"{API}/subjects", headers=keys["enrol"]) for _ in range(3)]
    assert [answer.status_code for answer in statuses] == [200, 200, 429]
    assert int(statuses[2].headers["retry-after"]) > 50


def test_a_rate_limit_fills_up_again() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 2, lambda: now[0])
    assert [limit.wait("a") for _ in range(3)] == [0, 0, 0.5]
    assert limit.wait("b") == 0
    now[0] = 0.5
    assert limit.wait("a") == 0 and limit.wait("a") > 0


def test_what_waits_goes_through_the_network_together() -> None:
    schema = PayloadSchema("toy", {"x": TensorSpec((1,), "a number")})
    entered, release = threading.Event(), threading.Event()
    batches: list[int] = []

    def embed(payload: Payload) -> np.ndarray:
        batches.append(len(payload))
        entered.set()
        release.wait(10)
        if bool((payload["x"] < 0).any()):
            raise ValueError("negative")
        return payload["x"].numpy() * 2

    batcher = Batcher(embed, images=4)
    results: dict[int, float] = {}

    def ask(number: int) -> None:
        results[number] = float(batcher.embed(Payload(schema, {"x": torch.tensor([[float(number)]])}))[0, 0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while batcher._queue.qsize() < 5:
        time.sleep(0.001)
    release.set()
    for thread in threads:
        thread.join(10)
    assert results == {number: 2.0 * number for number in range(6)}
    assert batches == [1, 4, 1]
    with pytest.raises(ValueError, match="negative"):
        batcher.embed(Payload(schema, {"x": torch.tensor([[-1.0]])}))
    batcher.close()


def test_a_closed_batcher_says_so_and_finishes_what_came_before() -> None:
    started, go_on = threading.Event(), threading.Event()

    def embed(payload: Payload) -> np.ndarray:
        started.set()
        assert go_on.wait(20)
        return np.full((len(payload), 1), 7, np.float32)

    payload = Payload(PayloadSchema("toy", {"x": TensorSpec((1,), "a number")}), {"x": torch.zeros(1, 1)})
    batcher = Batcher(embed)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.embed, payload)
        assert started.wait(20)
        ending = pool.submit(batcher.close)
        while not batcher._closed:
            time.sleep(0.001)
        with pytest.raises(ServiceError, match="is closing and embeds no more payloads") as error:
            batcher.embed(payload)
        assert error.value.status == 503
        go_on.set()
        assert first.result(20).tolist() == [[7]]
        ending.result(20)
    batcher.close()


def test_a_request_after_the_end_gets_503(http: TestClient, service: Service, keys: dict, send: Send) -> None:
    service._batcher.close()
    answer = http.post(f"{API}/recognize", content=send(0), headers=keys["recognise"])
    assert answer.status_code == 503 and "is closing" in answer.json()["message"]
