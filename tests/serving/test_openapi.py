"""Requests made from the OpenAPI by schemathesis: none makes the server fail, and answers are as described."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings, strategies

from ppfr.serving.gallery.api_keys import Role
from ppfr.serving.http.app import ServerLimits, create_app
from ppfr.serving.service import open_service
from ppfr.util.keyring import Keyring

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
EXAMPLES = 5


def test_the_openapi_is_kept_to(deployment: Path, tmp_path: Path) -> None:
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

    service = open_service(deployment, f"sqlite:///{tmp_path}/gallery.db", Keyring.create(), threads=1)
    headers = {"x-api-key": service.gallery.api_keys.create("all", Role.ADMIN)[1]}
    limits = ServerLimits(rate=1e6, burst=10**6)
    wanted = [schemathesis.checks.not_a_server_error, checks.status_code_conformance]
    wanted += [checks.content_type_conformance, checks.response_schema_conformance]
    with TestClient(create_app(service, limits), raise_server_exceptions=False) as http:
        schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 14
        for operation in operations:
            modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

            @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            @given(case=strategies.one_of(modes))
            def asked(case: schemathesis.Case) -> None:
                sent = case.as_transport_kwargs(base_url="http://testserver", headers=headers)
                sent["content"] = sent.pop("data", None)
                case.validate_response(http.request(**sent), checks=wanted)

            asked()
