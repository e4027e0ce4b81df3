"""Run a recogniser stored as an ONNX file on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.util.errors import CheckpointError

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
# InsightFace looks for a built-in normalisation among as many first nodes
_FIRST_NODES = 8


class OnnxNetwork:
    """An ONNX graph with one image input: (B, 3, H, W) prepared pixels to (B, D) float32, in onnxruntime on
    the CPU.

    `size` is the graph's (height, width), or None where it is free. A graph with a fixed batch is run once
    for each such batch, `torch.get_num_threads()` of them side by side; a free batch is run at once with as
    many threads. Raises CheckpointError.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"ONNX file {str(path)!r} does not exist")
        self.path = path
        self._threads = 0
        self._session: Any = None
        inputs = self._open().get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, "3") or inputs[0].type not in _NUMPY_TYPES:
            raise CheckpointError(
                f"{path.name} takes {[(i.name, i.type, i.shape) for i in inputs]}; "
                "expected one float input (B, 3, H, W)"
            )
        self._input, self._dtype = inputs[0].name, _NUMPY_TYPES[inputs[0].type]
        self._fixed_batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        height, width = shape[2:]
        self.size = (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Embed prepared images; the result lies on their device."""
        session = self._open()
        array = np.ascontiguousarray(inputs.detach().cpu().numpy(), dtype=self._dtype)
        if self._fixed_batch is None:
            rows = self._run(session, array)
        else:
            pieces = list(_pieces(array, self._fixed_batch))
            with ThreadPoolExecutor(self._threads) as pool:
                rows = np.concatenate(list(pool.map(lambda piece: self._run(session, piece), pieces)))
        embeddings = torch.from_numpy(np.ascontiguousarray(rows[: len(array)], dtype=np.float32))
        return embeddings.to(inputs.device)

    def normalises_itself(self) -> bool:
        """Whether the graph opens with a subtraction and a multiplication, as exports from MXNet do."""
        import onnx  # only ONNX files need it

        nodes = onnx.load(self.path, load_external_data=False).graph.node[:_FIRST_NODES]
        return {"Sub", "Mul"} <= {node.op_type for node in nodes}

    def _run(self, session: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            output: npt.NDArray[Any] = session.run(None, {self._input: array})[0]
        except Exception as error:  # onnxruntime's errors have no common class but Exception
            raise CheckpointError(
                f"{self.path.name} failed on {self._dtype.__name__} input of shape {array.shape}: {error}"
            ) from error
        if output.shape[0] != len(array):
            raise CheckpointError(
                f"{self.path.name} turned {len(array)} images into an output of shape {output.shape}; "
                "expected a row each"
            )
        return output.reshape(len(array), -1)

    def _open(self) -> Any:
        """Return a session that uses as many threads as torch does now."""
        threads = torch.get_num_threads()
        if self._session is None or threads != self._threads:
            self._session, self._threads = self._new_session(threads), threads
        return self._session

    def _new_session(self, threads: int) -> Any:
        import onnxruntime  # loading it takes a quarter of a second, and only ONNX files need it

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        fixed = getattr(self, "_fixed_batch", None)
        options.intra_op_num_threads = 1 if fixed else threads
        options.inter_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class but Exception
            raise CheckpointError(f"{self.path.name} is not an ONNX file that onnxruntime can run: {error}") from error


def _pieces(array: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    """Cut into batches of exactly `size`, the last one filled up with its last row."""
    for start in range(0, len(array), size):
        piece = array[start : start + size]
        yield np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0), (0, 0)), mode="edge")
