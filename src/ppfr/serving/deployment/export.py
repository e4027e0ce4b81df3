"""Split a trained method into the folder that goes to devices and the one that goes to the server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ppfr.methods import Method, Payload
from ppfr.methods.common.files import SECRETS_FILE
from ppfr.methods.common.graph import NoGraph
from ppfr.serving.contract import CLIENT, CLIENT_FILE, EMBED_FILE, SERVER, Contract
from ppfr.serving.deployment.graph import SavedGraph, save_protect_graph
from ppfr.serving.deployment.onnx import TOLERANCE, write_onnx
from ppfr.serving.runtime.embedder import Embedder
from ppfr.serving.runtime.protector import Protector, bare_client
from ppfr.util.errors import CheckpointError, MethodError
from ppfr.util.files import atomic_path
from ppfr.util.tensorfiles import write_tensors


@dataclass(frozen=True)
class Exported:
    """Result of an export: the contract, the difference of ONNX Runtime from PyTorch, and the graph's batch size.

    `batch` is None if the graph takes any number of images. `graph` is the client's own, for clients without Python.
    """

    contract: Contract
    difference: float
    graph: SavedGraph | NoGraph


def export_method(method: Method, out: Path, *, coding: str = "float32", seed: int = 0) -> Exported:
    """Write `out`/client (weights, settings, and secrets apart with mode 0600) and `out`/server (ONNX of `embed`).

    Where the method's client can be a graph, `out`/client also holds that as ONNX, with secrets and draws as inputs.
    The server's folder holds no secret and nothing of the client. Raises MethodError when the method lacks its secrets
    or when ONNX Runtime or the reloaded client does not compute what the method computes, CheckpointError for a folder
    that holds another deployment.
    """
    contract = Contract.of(method, coding)
    _refuse_other_deployment(out, contract)
    images = torch.rand((3, 3, *method.input_size), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    payload = _protect(method, images, seed)
    for half in (CLIENT, SERVER):
        (out / half).mkdir(parents=True, exist_ok=True)
        contract.save(out / half)
    _save_client(method, out / CLIENT)
    again = Protector(out / CLIENT).protect(images, torch.Generator().manual_seed(seed))
    if any(not torch.equal(again[name], payload[name]) for name in payload.tensors):
        raise MethodError(f"{method.info.name}: the exported client does not make the payloads that the method makes")
    graph = save_protect_graph(bare_client(out / CLIENT, contract), method, images[:1], out / CLIENT)
    with atomic_path(out / SERVER / EMBED_FILE) as path:
        _save_server(method, payload, path)
    difference = _difference(method, Embedder(out / SERVER), payload)
    if not difference <= TOLERANCE:
        raise MethodError(
            f"{method.info.name}: ONNX Runtime's embeddings differ from PyTorch's by {difference:.2g} of the largest "
            f"value; expected at most {TOLERANCE:g}"
        )
    return Exported(contract, difference, graph)


def _refuse_other_deployment(out: Path, contract: Contract) -> None:
    """Files of two deployments in one folder would be used together."""
    for half in (out / CLIENT, out / SERVER):
        if half.is_dir() and any(half.iterdir()):
            found = Contract.load(half)
            if found != contract:
                raise CheckpointError(
                    f"{half} holds another deployment (contract {found.id}, coding {found.coding}; this one is "
                    f"{contract.id}, {contract.coding}); choose another folder, or remove it first"
                )


class _Embed(nn.Module):
    """`embed` with the payload's tensors as positional arguments, for the exporter."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.server = method.server
        self._method = [method]
        self._names = list(method.schema.tensors)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._method[0]._embed(dict(zip(self._names, tensors, strict=True)))


@torch.no_grad()
def _protect(method: Method, images: Tensor, seed: int) -> Payload:
    return method.eval().protect(images, torch.Generator().manual_seed(seed))


def _save_client(method: Method, folder: Path) -> None:
    write_tensors(folder / CLIENT_FILE, method.client.state_dict())
    secrets = method.secrets()
    if secrets:
        write_tensors(folder / SECRETS_FILE, secrets, mode=0o600)


def _save_server(method: Method, payload: Payload, path: Path) -> None:
    dynamic = ({0: torch.export.Dim("images", min=1, max=1 << 16)},) * len(payload.tensors)
    write_onnx(_Embed(method).eval(), payload.tensors, ["embedding"], path, dynamic=(dynamic,))


def _difference(method: Method, embedder: Embedder, payload: Payload) -> float:
    with torch.no_grad():
        expected = method.embed(payload).float().numpy()
    return float(np.abs(embedder.embed(payload) - expected).max() / np.abs(expected).max())
