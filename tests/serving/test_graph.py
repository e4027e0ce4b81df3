"""The client as a graph: ONNX Runtime makes the payloads that PyTorch makes, from draws made outside."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ppfr
from ppfr.methods import BackboneSpec, Method, create
from ppfr.methods.common.graph import Draw, NoGraph
from ppfr.serving.deployment.export import export_method
from ppfr.serving.deployment.graph import GraphProtector, SavedGraph, save_protect_graph
from ppfr.util.errors import CheckpointError, MethodError
from support.deployments import SPEC

DUET = BackboneSpec("mobilefacenet", 16, 0.25, (112, 112))
GRAPHS = {
    "arcface": {},
    "arcface-fd": {},
    "partialface": {"table": "random", "table_seed": 5},
    "duetface": {},
    "minusface": {"generator_width": 0.125, "duplicates": 2},
    "privacyhfr": {"pattern": "none"},
    "dctdp": {},
    "peep": {"components": 8},
    "cloak": {},
    "cpgan": {},
    "ppfr-fd": {},
    "slerpface": {"base": "partialface", "base_options": {"table": "random", "table_seed": 5}},
}
NO_GRAPHS = {"privacyhfr": {"pattern": "dra"}, "duetface": {"roi": "landmarks"}}


def build(name: str, **options: object) -> Method:
    return create(name, DUET if name == "duetface" else SPEC, **options).eval()


def bare(name: str, **options: object) -> Method:
    method = build(name, **options)
    if method.info.secrets:
        method.drop_secrets()
    return method


def image_for(method: Method, seed: int = 0) -> torch.Tensor:
    return torch.rand((1, 3, *method.input_size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_runtime_makes_the_payloads_of_pytorch(name: str, tmp_path: Path) -> None:
    method = build(name, **GRAPHS[name])
    saved = save_protect_graph(bare(name, **GRAPHS[name]), method, image_for(method), tmp_path)
    assert isinstance(saved, SavedGraph) and saved.difference <= 1e-4
    graph = GraphProtector(tmp_path)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        draws = {draw.name: draw.sample(generator) for draw in graph.draws}
        found = graph.protect(image_for(method, seed), method.secrets(), draws)
        with torch.no_grad():
            expected = method.protect(image_for(method, seed), torch.Generator().manual_seed(seed))
        assert list(found) == list(expected.tensors)
        for key, tensor in expected.tensors.items():
            np.testing.assert_allclose(found[key], tensor.numpy(), atol=1e-4 * float(tensor.abs().max()))


def test_every_method_has_a_graph_or_says_why_not(tmp_path: Path) -> None:
    for name in ppfr.method_names():
        if name not in GRAPHS:
            graph = build(name).protect_graph()
            assert isinstance(graph, NoGraph) and graph.reason != "its author wrote none", name


@pytest.mark.parametrize("name", NO_GRAPHS)
def test_settings_without_a_graph_say_why_and_leave_no_old_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "protect.onnx").write_bytes(b"of an earlier export")
    method = bare(name, **NO_GRAPHS[name])
    graph = save_protect_graph(method, method, image_for(method), tmp_path)
    assert isinstance(graph, NoGraph) and len(graph.reason) > 20
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"holds no protect\.json"):
        GraphProtector(tmp_path)


def test_other_draws_make_other_payloads(tmp_path: Path) -> None:
    method = build("partialface", **GRAPHS["partialface"])
    save_protect_graph(bare("partialface"), method, image_for(method), tmp_path)
    graph = GraphProtector(tmp_path)
    (draw,) = graph.draws
    assert (draw.kind, draw.shape, draw.of) == ("choice", (1,), 18)
    payloads = [
        graph.protect(image_for(method), method.secrets(), {"kind": torch.tensor([kind])})["channels"]
        for kind in range(18)
    ]
    assert len({payload.tobytes() for payload in payloads}) == 18


def test_the_export_holds_no_secret_in_graph_and_description(tmp_path: Path) -> None:
    method = build("ppfr-fd")
    export_method(method, tmp_path)
    client = tmp_path / "client"
    described = json.loads((client / "protect.json").read_text())
    assert {name: value["shape"] for name, value in described["secrets"].items()} == {
        name: list(tensor.shape) for name, tensor in method.secrets().items()
    }
    held = (client / "protect.onnx").read_bytes() + (client / "protect.json").read_bytes()
    for secret in method.secrets().values():
        assert secret.numpy().tobytes()[:32] not in held
        assert secret.numpy().tobytes()[:32] in (client / "secrets.safetensors").read_bytes()
    assert (client / "secrets.safetensors").stat().st_mode & 0o777 == 0o600


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    method = build("cpgan")
    other = create("cpgan", SPEC, seed=1).eval()
    with pytest.raises(MethodError, match=r"the client's graph differs from PyTorch by .* expected at most 0.0001"):
        save_protect_graph(other, method, image_for(method), tmp_path)


def test_draws_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    choices = Draw("d", "choice", (1000,), 7).sample(generator)
    assert choices.dtype == torch.int64 and sorted(set(choices.tolist())) == list(range(7))
    orders = Draw("d", "permutation", (3, 50)).sample(generator)
    assert all(sorted(order) == list(range(50)) for order in orders.tolist())
    noise = Draw("d", "laplace", (20000,)).sample(generator)
    assert abs(float(noise.abs().mean()) - 1) < 0.05 and abs(float(noise.std()) - math.sqrt(2)) < 0.1
    noise = Draw("d", "normal", (20000,)).sample(generator)
    assert abs(float(noise.std()) - 1) < 0.05
