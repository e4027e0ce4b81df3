"""The server's half of a deployment: payloads in, embeddings out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from ppfr.methods import Payload
from ppfr.serving.contract import SERVER, Contract, half_folder, variant_file
from ppfr.util.errors import CheckpointError


class Embedder:
    """The server's half of an exported method, run by ONNX Runtime."""

    def __init__(self, folder: Path | str, *, threads: int = 0, precision: str = "float32") -> None:
        """Load the server of a deployment: what `ppfr export` wrote, or the `server/` folder in it.

        `threads` is 0 for ONNX Runtime's own choice; `precision` is one that `ppfr export --precision` wrote. Raises
        CheckpointError.
        """
        folder = half_folder(folder, SERVER)
        self.contract = Contract.load(folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        path = folder / variant_file(precision)
        if not path.is_file():
            asked = "" if precision == "float32" else f" --precision {precision}"
            raise CheckpointError(f"{path} does not exist; give the server/ folder that `ppfr export{asked}` wrote")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def embed(self, payload: Payload) -> np.ndarray:
        """Embeddings (B, D) float32, not normalised; raises PayloadError for another method's payload."""
        self.contract.schema.check(payload.tensors)
        return self.run({name: tensor.numpy() for name, tensor in payload.tensors.items()})

    def run(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """As `embed`, for the tensors of a payload that is known to be one of this method."""
        if not len(next(iter(tensors.values()))):
            return np.zeros((0, self.contract.embedding_size), np.float32)
        embeddings: np.ndarray = self._session.run(None, dict(tensors))[0]
        return embeddings
