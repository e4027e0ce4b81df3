"""Export: both halves compute what the method computes, and neither holds what belongs to the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ppfr.methods import BackboneSpec, Payload, create
from ppfr.serving.contract import Contract
from ppfr.serving.deployment.export import export_method
from ppfr.serving.runtime.embedder import Embedder
from ppfr.serving.runtime.protector import Protector
from ppfr.util.errors import CheckpointError, PayloadError
from support.deployments import SPEC, build_method


def test_client_bytes_embed_as_the_method_does(deployment: Path) -> None:
    method, client, server = build_method(), Protector(deployment / "client"), Embedder(deployment / "server")
    images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1
    data = client.to_bytes(images, torch.Generator().manual_seed(5))
    payload = Payload.from_bytes(data, server.contract.schema, contract=server.contract.id)
    found = server.embed(payload)
    with torch.no_grad():
        expected = method.embed(payload).numpy()
        clear = method(images, torch.Generator().manual_seed(5)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    # the coding costs little
    cosine = (found * clear).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(clear, axis=1)
    assert (cosine > 0.99).all()


def test_draws_are_fresh(deployment: Path) -> None:
    client = Protector(deployment / "client")
    image = torch.zeros(1, 3, 32, 32) + torch.linspace(-1, 1, 32)[:, None] * torch.linspace(-1, 1, 32) ** 3
    assert len({client.protect(image)["channels"].numpy().tobytes() for _ in range(20)}) > 1


def test_secrets_lie_apart_and_only_with_the_client(deployment: Path) -> None:
    secrets = deployment / "client" / "secrets.safetensors"
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in (deployment / "server").iterdir()) == ["contract.json", "embed.onnx"]
    subsets = load_file(secrets)["subsets"]
    graph = (deployment / "server" / "embed.onnx").read_bytes()
    for dtype in (np.int64, np.int32, np.float32):
        assert subsets.numpy().astype(dtype)[0].tobytes() not in graph
    for half in ("client", "server"):
        assert "77" not in json.dumps(json.loads((deployment / half / "contract.json").read_text())["config"])


def test_a_client_without_its_secrets_is_refused(deployment: Path, tmp_path: Path) -> None:
    for file in (deployment / "client").iterdir():
        if "secrets" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks secrets\.safetensors"):
        Protector(tmp_path)


def test_a_folder_that_is_no_deployment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"contract\.json does not exist; give the client/ or server/ folder"):
        Embedder(tmp_path)
    (tmp_path / "contract.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="cannot be read as a contract"):
        Embedder(tmp_path)


@pytest.mark.slow
def test_a_folder_of_another_deployment_is_left_as_it_is(tmp_path: Path) -> None:
    method = create("arcface", BackboneSpec("mobilefacenet", 16, 0.125, (112, 112)), seed=0).eval()
    first = export_method(method, tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert export_method(method, tmp_path).contract == first.contract
    other = create("arcface", BackboneSpec("mobilefacenet", 16, 0.125, (112, 112)), seed=1).eval()
    for refused, coding in ((other, "float32"), (method, "int8")):
        with pytest.raises(CheckpointError, match=rf"client holds another deployment \(contract {first.contract.id}"):
            export_method(refused, tmp_path, coding=coding)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_the_contract_binds_weights_and_settings_and_comes_back(tmp_path: Path) -> None:
    contract = Contract.of(build_method(), "int8")
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    assert Contract.of(build_method(), "float32").id == contract.id
    assert Contract.of(build_method(seed=1)).id != contract.id
    assert Contract.of(build_method(training_subsets=6)).id != contract.id


def test_the_contract_is_the_same_for_any_secret() -> None:
    ours, theirs = build_method(), create("partialface", SPEC, table="random", table_seed=78)
    assert Contract.of(ours).id == Contract.of(theirs).id


def test_a_payload_of_another_deployment_is_refused(deployment: Path) -> None:
    client = Protector(deployment / "client")
    data = client.to_bytes(torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    other = Contract.of(build_method(seed=1))
    with pytest.raises(PayloadError, match="made for contract"):
        Payload.from_bytes(data, other.schema, contract=other.id)


@pytest.mark.parametrize(
    ("name", "options", "sender"),
    [
        ("partialface", {"table": "random"}, None),
        ("arcface", {}, "arcface"),
        ("arcface-fd", {}, "arcface-fd"),
        ("slerpface", {"base": "arcface"}, "arcface"),
        ("slerpface", {"base": "minusface"}, None),
    ],
)
def test_a_deployment_that_protects_nothing_says_so(name: str, options: dict[str, object], sender: str | None) -> None:
    contract = Contract.of(create(name, SPEC, **options))
    assert contract.warning == (
        sender and f"{sender} protects nothing: what clients send is the picture of the face itself"
    )
