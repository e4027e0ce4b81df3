"""What strangers send: keys, headers, paths, payloads of other deployments; and what a thief of the files finds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from ppfr.serving.deployment.export import export_method
from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http.app import ServerLimits, create_app
from ppfr.serving.runtime.protector import Protector
from ppfr.serving.service import Service, open_service
from ppfr.util.keyring import Keyring
from support.deployments import build_method

API = "/api/v1/recognition"
Send = Callable[..., bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gallery")


@pytest.fixture(scope="module")
def service(deployment: Path, folder: Path) -> Service:
    return open_service(deployment, f"sqlite:///{folder}/gallery.db", Keyring.create(), threads=1)


@pytest.fixture(scope="module")
def keys(service: Service) -> dict[str, str]:
    return {str(role): service.gallery.api_keys.create(role, role)[1] for role in Role}


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, ServerLimits(rate=1e6, burst=10**6)), raise_server_exceptions=False) as client:
        yield client


# --- keys ---------------------------------------------------------------------------------------------------------
def test_every_route_of_the_api_wants_a_key(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    asked = [(method, path) for path, methods in paths.items() for method in methods if path.startswith("/api/")]
    assert len(asked) >= 12
    for method, path in asked:
        filled = path.replace("{subject}", "x").replace("{image_id}", "y")
        for headers in ({}, {"x-api-key": ""}, {"x-api-key": "0" * 43}):
            answer = http.request(method, filled, params={"subject": "x"}, headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)


# --- headers and paths ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "key",
    ["' or '1'='1", "%00", "x" * 201, "a" * 5000, "Bearer x", "\u00e9".encode(), b"\xff\xfe", b"a\tb", "../../.."],
)
def test_keys_that_are_none_are_refused(http: TestClient, key: str | bytes) -> None:
    answer = http.get(f"{API}/subjects", headers={"x-api-key": key})
    assert answer.status_code in (400, 401) and set(answer.json()) == {"message", "code"}
    assert "traceback" not in answer.text.lower()


@pytest.mark.parametrize("key", ["short", "y" * 101, b"\xff" * 9, "'; drop table requests; --"])
def test_request_keys_are_only_keys(http: TestClient, keys: dict[str, str], send: Send, key: str | bytes) -> None:
    headers = {"x-api-key": keys["enrol"], "Idempotency-Key": key}
    answer = http.post(f"{API}/faces", params={"subject": "Ada"}, content=send(0), headers=headers)
    assert answer.status_code in (201, 400)
    assert http.get("/healthz").status_code == 200
    assert http.get(f"{API}/faces", headers={"x-api-key": keys["enrol"]}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/subjects/..%2f..%2f..%2fetc%2fpasswd",
        f"{API}/subjects/%00",
        f"{API}/subjects/%0d%0ax-injected:%20yes",
        f"{API}/faces/..%2f..%2fhealthz",
        f"{API}/faces/%27%20or%201=1",
        f"{API}/faces/" + "a" * 5000,
        "//api/v1/recognition/subjects",
        "/api/v1/../../../etc/passwd",
        f"{API}/subjects/%ff%fe",
    ],
)
def test_paths_lead_nowhere_else(http: TestClient, keys: dict[str, str], path: str) -> None:
    for method in ("GET", "DELETE", "PUT", "POST"):
        answer = http.request(method, path, headers={"x-api-key": keys["admin"]})
        assert 400 <= answer.status_code < 500
        assert "x-injected" not in answer.headers and "root:" not in answer.text


def test_a_host_header_is_not_repeated(http: TestClient) -> None:
    answer = http.get("/healthz", headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
    assert "evil" not in answer.text + str(answer.headers)


# --- other deployments ----------------------------------------------------------------------------------------------
def test_a_payload_of_another_deployment_is_refused(
    http: TestClient, keys: dict[str, str], tmp_path: Path, service: Service
) -> None:
    # the same method with the same settings; other weights
    export_method(build_method(seed=1), tmp_path, coding="dct:0.02")
    other = Protector(tmp_path / "client")
    assert other.contract.schema == service.contract.schema and other.contract.id != service.contract.id
    message = other.to_bytes(torch.zeros(1, 3, 32, 32))
    for path in (f"{API}/faces?subject=x", f"{API}/recognize"):
        answer = http.post(path, content=message, headers={"x-api-key": keys["admin"]})
        assert answer.status_code == 400 and "contract" in answer.json()["message"]


# --- what a thief finds ---------------------------------------------------------------------------------------------
def test_files_hold_no_template_no_key_and_no_message(
    http: TestClient, service: Service, keys: dict[str, str], send: Send, folder: Path
) -> None:
    messages = [send(number) for number in range(4)]
    ids = [
        http.post(f"{API}/faces?subject=Eve", content=message, headers={"x-api-key": keys["enrol"]}).json()["image_id"]
        for message in messages
    ]
    http.post(f"{API}/recognize", content=messages[0], headers={"x-api-key": keys["recognise"]})
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    # the files are the right ones
    assert b"Eve" in content and ids[0].encode() in content
    for face in ids:
        template = service.gallery.faces.template(face)
        assert template is not None
        for kind in ("<f2", ">f2", "<f4", "<f8"):
            values = template.numpy().astype(kind)
            runs = [values[start : start + 4].tobytes() for start in range(len(values) - 3)]
            assert not any(run in content or base64.b64encode(run)[:8] in content for run in runs)
        assert json.dumps(np.round(template.numpy(), 3).tolist())[1:20].encode() not in content
    assert not any(key.encode() in content for key in keys.values())
    # no part of a message either; its first bytes are those of every zstd frame
    assert not any(message[64:128] in content for message in messages)
