"""The client as an ONNX graph, for clients without Python such as the web page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from ppfr.methods import Method
from ppfr.methods.common.graph import Draw, NoGraph, ProtectGraph
from ppfr.serving.contract import GRAPH_FILE, GRAPH_INFO_FILE
from ppfr.serving.deployment.onnx import TOLERANCE, write_onnx
from ppfr.util.errors import CheckpointError, MethodError
from ppfr.util.files import atomic_path, atomic_write

_FORMAT = 1


@dataclass(frozen=True)
class SavedGraph:
    """A written client's graph, with the difference of ONNX Runtime from PyTorch as a share of the largest value."""

    difference: float


def save_protect_graph(bare: Method, method: Method, image: Tensor, folder: Path) -> SavedGraph | NoGraph:
    """Write `protect.onnx` and `protect.json` to a client's folder, or say why there is no graph.

    The graph is made from `bare`, a client without its secrets, so none can be in it, and compared with `method`, which
    has them, on an `image` (1,3,H,W). Raises MethodError when ONNX Runtime does not compute what the method computes.
    """
    graph = bare.protect_graph()
    if isinstance(graph, NoGraph):
        for name in (GRAPH_FILE, GRAPH_INFO_FILE):
            (folder / name).unlink(missing_ok=True)
        return graph
    secrets = {name: tensor.cpu() for name, tensor in method.secrets().items()}
    names = list(method.schema.tensors)
    draws = {draw.name: draw.sample(torch.Generator().manual_seed(0)) for draw in graph.draws}
    inputs = {"images": image, **{name: secrets[name] for name in graph.secrets}, **draws}
    with atomic_path(folder / GRAPH_FILE) as path:
        write_onnx(_Client(bare, graph, list(inputs), names).eval(), inputs, [_output(name) for name in names], path)
    description = {
        "format": _FORMAT,
        "images": list(image.shape),
        "secrets": {name: _described(secrets[name]) for name in graph.secrets},
        "draws": [asdict(draw) for draw in graph.draws],
        # a payload's tensor may have the name of an input
        "outputs": {name: _output(name) for name in names},
    }
    atomic_write(folder / GRAPH_INFO_FILE, json.dumps(description, indent=2) + "\n")
    difference = _difference(GraphProtector(folder), method, image)
    if not difference <= TOLERANCE:
        raise MethodError(
            f"{method.info.name}: the client's graph differs from PyTorch by {difference:.2g} of the largest value; "
            f"expected at most {TOLERANCE:g}"
        )
    return SavedGraph(difference)


class GraphProtector:
    """Runs a client's graph with ONNX Runtime, as a client in any language does."""

    def __init__(self, folder: Path) -> None:
        """Load a `client/` folder; raises CheckpointError when it holds no graph."""
        try:
            described = json.loads((folder / GRAPH_INFO_FILE).read_text())
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} holds no {GRAPH_INFO_FILE}: its client has no graph") from error
        self.draws = [Draw(**{**draw, "shape": tuple(draw["shape"])}) for draw in described["draws"]]
        self._secrets = list(described["secrets"])
        self._outputs: dict[str, str] = described["outputs"]
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH_FILE), providers=["CPUExecutionProvider"])

    def protect(
        self, image: Tensor, secrets: Mapping[str, Tensor], draws: Mapping[str, Tensor]
    ) -> dict[str, np.ndarray]:
        """The payload's tensors of one image (1,3,H,W) in [-1,1]."""
        given = {"images": image, **{name: secrets[name] for name in self._secrets}, **draws}
        values = {name: tensor.numpy() for name, tensor in given.items()}
        found = self._session.run(list(self._outputs.values()), values)
        return dict(zip(self._outputs, found, strict=True))


class _Client(nn.Module):
    """The graph with positional arguments, for the exporter."""

    def __init__(self, bare: Method, graph: ProtectGraph, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.client = bare.client
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self._inputs, tensors, strict=True))
        payload = self._graph.apply(named.pop("images"), **named)
        return tuple(payload[name] for name in self._outputs)


def _output(name: str) -> str:
    return f"payload.{name}"


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


@torch.no_grad()
def _difference(protector: GraphProtector, method: Method, image: Tensor) -> float:
    """Difference of the graph from `Method.protect`, as a share of the largest value; whole numbers may differ by 1."""
    generator = torch.Generator().manual_seed(1)
    draws = {draw.name: draw.sample(generator) for draw in protector.draws}
    found = protector.protect(image, method.secrets(), draws)
    expected = method.protect(image, torch.Generator().manual_seed(1))
    worst = 0.0
    for name, tensor in expected.tensors.items():
        wanted = tensor.numpy().astype(np.float64)
        apart = np.abs(found[name] - wanted)
        if not tensor.is_floating_point():
            # rounding may go either way
            apart = np.maximum(apart - 1, 0)
        worst = max(worst, float(apart.max() / max(np.abs(wanted).max(), 1e-12)))
    return worst
