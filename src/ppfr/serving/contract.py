"""The contract of a deployment: what its clients and server must agree on. Nothing in it is secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ppfr.methods import Method, PayloadSchema, TensorSpec
from ppfr.methods.common.registry import method_class
from ppfr.util.errors import CheckpointError, PayloadError
from ppfr.util.files import atomic_write
from ppfr.wire import parse_coding

# the two halves of a deployment, and the files in them
CLIENT, SERVER = "client", "server"
CONTRACT_FILE = "contract.json"
CLIENT_FILE, GRAPH_FILE, GRAPH_INFO_FILE = "client.safetensors", "protect.onnx", "protect.json"
EMBED_FILE = "embed.onnx"
PRECISIONS = ("float32", "float16", "int8")
_FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """A subject of the gallery, and the cosine in [-1,1] of the probe with the subject's nearest template."""

    subject: str
    similarity: float


@dataclass(frozen=True)
class Contract:
    """One deployment: method, settings, payload and preprocessing; `id` also binds the weights.

    `config` is `Method.config()`, which leaves secrets out. `input_size` is the (height, width) of aligned RGB crops in
    [-1,1]. `coding` is how clients write payloads; it is no part of the id, since a server reads every coding.
    """

    id: str
    config: Mapping[str, Any]
    schema: PayloadSchema
    input_size: tuple[int, int]
    embedding_size: int
    coding: str

    @classmethod
    def of(cls, method: Method, coding: str = "float32") -> Self:
        """The contract of a trained method; raises PayloadError for an unknown coding."""
        parse_coding(coding)
        agreed = {
            "format": _FORMAT,
            "config": method.config(),
            "schema": _schema_to_dict(method.schema),
            "input": {"size": list(method.input_size), "range": [-1, 1], "order": "RGB"},
            "weights": _hash_of_weights(method),
        }
        return cls(
            id=hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()[:32],
            config=method.config(),
            schema=method.schema,
            input_size=method.input_size,
            embedding_size=method.embedding_size,
            coding=coding,
        )

    @property
    def warning(self) -> str | None:
        """A warning for users whose method protects nothing of what is sent; None for one that protects."""
        # a method that protects templates alone sends what its base sends
        sender = self.config["options"].get("base", self.config["method"])
        if method_class(sender).info.protects:
            return None
        return f"{sender} protects nothing: what clients send is the picture of the face itself"

    def save(self, folder: Path) -> None:
        """Write `contract.json`."""
        values = asdict(self) | {"format": _FORMAT, "schema": _schema_to_dict(self.schema)}
        atomic_write(folder / CONTRACT_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read `contract.json`; raises CheckpointError for a folder that is no half of a deployment."""
        path = Path(folder) / CONTRACT_FILE
        try:
            values = json.loads(path.read_text())
            if values["format"] != _FORMAT:
                raise CheckpointError(f"{path} has format {values['format']!r}; this version reads {_FORMAT}")
            return cls(
                id=values["id"],
                config=values["config"],
                schema=_schema_from_dict(values["schema"]),
                input_size=(values["input_size"][0], values["input_size"][1]),
                embedding_size=values["embedding_size"],
                coding=values["coding"],
            )
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path} does not exist; give the client/ or server/ folder that `ppfr export` wrote"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, PayloadError) as error:
            raise CheckpointError(f"{path} cannot be read as a contract: {error!r}") from error


def half_folder(folder: Path | str, half: str) -> Path:
    """The folder of a half (`CLIENT` or `SERVER`), given itself or the folder of the whole deployment."""
    folder = Path(folder)
    return folder / half if (folder / half).is_dir() else folder


def variant_file(precision: str) -> str:
    """The file name of the server's graph in a precision; raises CheckpointError for an unknown one."""
    if precision not in PRECISIONS:
        raise CheckpointError(f"precision {precision!r}; expected {', '.join(PRECISIONS)}")
    return EMBED_FILE if precision == "float32" else f"embed.{precision}.onnx"


def _hash_of_weights(method: Method) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(method.own_tensors().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _schema_to_dict(schema: PayloadSchema) -> dict[str, Any]:
    return {
        "method": schema.method,
        "tensors": {
            name: {
                "shape": list(spec.shape),
                "meaning": spec.meaning,
                "dtype": str(spec.dtype).removeprefix("torch."),
                "block_dct": spec.block_dct,
            }
            for name, spec in schema.tensors.items()
        },
    }


def _schema_from_dict(values: Mapping[str, Any]) -> PayloadSchema:
    tensors = {
        name: TensorSpec(tuple(spec["shape"]), spec["meaning"], getattr(torch, spec["dtype"]), spec["block_dct"])
        for name, spec in values["tensors"].items()
    }
    return PayloadSchema(values["method"], tensors)
