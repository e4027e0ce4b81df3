"""Smaller variants of the server's graph: near to float32, smaller, and refused where they cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

import ppfr
from ppfr.data.sources import open_splits
from ppfr.methods import BackboneSpec, Method, Payload, create
from ppfr.serving.deployment.export import export_method
from ppfr.serving.deployment.precision import measure_costs, parse_precisions, write_variants
from ppfr.serving.runtime.embedder import Embedder
from ppfr.serving.runtime.protector import Protector
from ppfr.util.errors import CheckpointError, MethodError
from support.commands import ppfr_command

FACES = "synthetic:people=12,images=4"
# mean cosines of untrained networks, measured: float16 0.9999997, int8 0.979 (arcface) and 0.939 (partialface)
LEAST = {"float16": 0.9999, "int8": 0.8}


def build(name: str) -> Method:
    torch.manual_seed(0)
    return create(name, BackboneSpec("mobilefacenet", 32, 0.25, (112, 112)), seed=0).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The server's folder of an untrained method with all variants, written once; tests leave it as it is."""

    @cache
    def export(name: str) -> Path:
        method, folder = build(name), tmp_path_factory.mktemp(name)
        export_method(method, folder)
        write_variants(method, folder / "server", ["float16", "int8"], open_splits(FACES, size=112)[0])
        return folder / "server"

    return export


@pytest.mark.parametrize("name", ["arcface", pytest.param("partialface", marks=pytest.mark.slow)])
def test_variants_are_near_and_smaller(name: str, exported: Callable[[str], Path]) -> None:
    method, server = build(name), exported(name)
    _, test = open_splits(FACES, size=112)
    whole, *others = measure_costs(method, server, ["float16", "int8"], test, pairs=20)
    assert (whole.precision, whole.least_cosine) == ("float32", pytest.approx(1, abs=1e-6))
    for cost in others:
        assert LEAST[cost.precision] < cost.mean_cosine < 1 and cost.least_cosine <= cost.mean_cosine
        assert cost.file_bytes < whole.file_bytes


def test_int8_rounds_dense_layers_only(exported: Callable[[str], Path]) -> None:
    """Payload channels, and those of depthwise convolutions, differ too much in strength for one range of 8 bits."""
    graph = onnx.load(exported("arcface") / "embed.int8.onnx").graph
    inputs = {one.name for one in graph.input}
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    depthwise = [node for node in convolutions if any(part.name == "group" and part.i > 1 for part in node.attribute)]
    assert not any(inputs & set(node.input) for node in graph.node if node.op_type == "QuantizeLinear")
    assert 0 < len(depthwise) < len(convolutions) / 2
    for node in convolutions:
        kept = node is convolutions[0] or node in depthwise
        assert {name in rounded for name in node.input[:2]} == {not kept}


def test_float32_is_what_a_server_opens(exported: Callable[[str], Path], tmp_path: Path) -> None:
    method, server = build("arcface"), tmp_path / "server"
    shutil.copytree(exported("arcface"), server)
    (server / "embed.int8.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"embed\.int8\.onnx does not exist; .* --precision int8` wrote"):
        Embedder(server, precision="int8")
    with pytest.raises(CheckpointError, match="precision 'int4'; expected float32, float16, int8"):
        Embedder(server, precision="int4")
    images = torch.rand((3, 3, 112, 112), generator=torch.Generator().manual_seed(0)) * 2 - 1
    payload = method.protect(images)
    with torch.no_grad():
        expected = method.embed(payload).numpy()
    np.testing.assert_allclose(Embedder(server).embed(payload), expected, atol=1e-4)
    np.testing.assert_allclose(Embedder(server, precision="float16").embed(payload), expected, atol=0.02)


def test_names_of_precisions() -> None:
    assert parse_precisions("float32") == []
    assert parse_precisions("int8, float16") == ["float16", "int8"]
    with pytest.raises(MethodError, match=r"precision bf16 is not known; .* int8; ONNX Runtime has no bfloat16"):
        parse_precisions("float32,bf16")


def test_why_there_is_no_bfloat16() -> None:
    """When this fails, ONNX Runtime has learned it, and a graph in bfloat16 can be offered."""
    nodes = [
        onnx.helper.make_node("Cast", [name], [f"{name}16"], to=onnx.TensorProto.BFLOAT16)
        for name in ("image", "weight")
    ]
    nodes.append(onnx.helper.make_node("Conv", ["image16", "weight16"], ["result16"]))
    nodes.append(onnx.helper.make_node("Cast", ["result16"], ["result"], to=onnx.TensorProto.FLOAT))
    image, weight, result = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", (1, 2, 5, 5)), ("weight", (2, 2, 3, 3)), ("result", (1, 2, 3, 3)))
    )
    graph = onnx.helper.make_graph(nodes, "convolution", [image, weight], [result])
    # the first version of the operator that knows bfloat16
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(NoKernel, match=r"Could not find an implementation for Conv\(22\)"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ppfr.save(build("arcface"), tmp_path / "run")
    settings = (tmp_path / "run", "--out", tmp_path / "out", "--precision", "float32,int8")
    assert ppfr_command("export", *settings) == 1
    assert "give faces with --data" in capsys.readouterr().err
    assert ppfr_command("export", *settings, "--data", FACES) == 0
    printed = capsys.readouterr()
    assert "warning: arcface protects nothing: what clients send is the picture" in " ".join(printed.err.split())
    told = printed.out
    assert "int8" in told and "pair accuracy" in told and "cosine to float32" in told
    assert sorted(path.name for path in (tmp_path / "out" / "server").iterdir()) == [
        "contract.json",
        "embed.int8.onnx",
        "embed.onnx",
    ]
    # the same command serves it
    ran: list[tuple[str, np.ndarray]] = []

    def listen(application: Any, **_: object) -> None:
        service = application.state.service
        ran.append((service.contract.id, service._embed(message, images=1).numpy()))
        service.close()

    monkeypatch.setattr("uvicorn.run", listen)
    image = torch.rand((1, 3, 112, 112), generator=torch.Generator().manual_seed(0)) * 2 - 1
    message = Protector(tmp_path / "out" / "client").to_bytes(image)
    gallery = f"sqlite:///{tmp_path}/gallery.db"
    options = ("--gallery", gallery, "--key-file", tmp_path / "gallery.key", "--init", "--port", "0")
    for precision in ("float32", "int8"):
        assert ppfr_command("serve", tmp_path / "out", *options, "--precision", precision) == 0
    assert "warning: arcface protects nothing" in " ".join(capsys.readouterr().err.split())
    assert ppfr_command("serve", tmp_path / "out", *options, "--precision", "float16") == 1
    assert "embed.float16.onnx does not exist" in " ".join(capsys.readouterr().err.split())
    contract = Protector(tmp_path / "out" / "client").contract
    payload = Payload.from_bytes(message, contract.schema, contract=contract.id)
    for (_, found), precision in zip(ran, ("float32", "int8"), strict=True):
        np.testing.assert_array_equal(found, Embedder(tmp_path / "out" / "server", precision=precision).embed(payload))
    assert ran[0][0] == ran[1][0] and not np.array_equal(ran[0][1], ran[1][1])
