"""Quantised variants of the server's graph, calibrated on faces, and their cost in accuracy."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.evaluate import BATCH_SIZE, PAIRS, draw_pair_test
from ppfr.evaluation.metrics.verification import unit_rows
from ppfr.methods import Method
from ppfr.serving.contract import PRECISIONS, variant_file
from ppfr.serving.runtime.embedder import Embedder
from ppfr.util.errors import MethodError
from ppfr.util.files import atomic_path
from ppfr.util.progress import track

CALIBRATION_FACES = 128


@dataclass(frozen=True)
class PrecisionCost:
    """Cost of a precision: file size, cosines to the float32 embeddings of the same payloads, accuracy on pairs.

    `accuracy` has its bootstrap interval over people, all in [0, 1]; pairs are single, unmirrored queries.
    """

    precision: str
    file_bytes: int
    mean_cosine: float
    least_cosine: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def parse_precisions(text: str) -> list[str]:
    """`float32,int8` as a list without float32, which is always written; raises MethodError for others."""
    wanted = [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in PRECISIONS]:
        why = "; ONNX Runtime has no bfloat16 convolutions for CPUs" if {"bf16", "bfloat16"} & set(unknown) else ""
        raise MethodError(f"precision {', '.join(unknown)} is not known; expected some of {', '.join(PRECISIONS)}{why}")
    return [name for name in PRECISIONS[1:] if name in wanted]


def write_variants(method: Method, server: Path, precisions: Sequence[str], faces: FaceSet, *, seed: int = 0) -> None:
    """Write `embed.PRECISION.onnx` beside `embed.onnx` in a `server/` folder.

    float16 holds weights and computes in half precision, with float32 inputs and outputs. int8 computes the dense
    convolutions and the last layer in 8-bit integers, with weights scaled for each channel and activations in the
    ranges that the payloads of 128 of `faces` give; all else stays as it is.
    """
    for precision in precisions:
        with atomic_path(server / variant_file(precision)) as path:
            if precision == "float16":
                graph = convert_float_to_float16(onnx.load(server / variant_file("float32")), keep_io_types=True)
                onnx.save(graph, str(path))
            else:
                rows = np.random.default_rng(seed).permutation(len(faces))[:CALIBRATION_FACES]
                batches = _payloads(method, faces, rows, BATCH_SIZE, seed)
                _quantise(server / variant_file("float32"), path, batches)


def measure_costs(
    method: Method, server: Path, precisions: Sequence[str], faces: FaceSet, *, pairs: int = PAIRS, seed: int = 0
) -> list[PrecisionCost]:
    """float32 and the other precisions on up to `pairs` pairs of each kind, all on the same payloads."""
    names = ["float32", *precisions]
    embedders = [Embedder(server, precision=name) for name in names]
    test = draw_pair_test(faces, genuine=pairs, impostor=pairs, seed=seed)
    rows: list[list[np.ndarray]] = [[] for _ in names]
    for tensors in track(_payloads(method, faces, test.rows, BATCH_SIZE, seed), "measuring precisions"):
        for parts, embedder in zip(rows, embedders, strict=True):
            parts.append(embedder.run(tensors))
    embeddings = [np.concatenate(parts) for parts in rows]
    costs = []
    for name, found in zip(names, embeddings, strict=True):
        cosines = (unit_rows(found) * unit_rows(embeddings[0])).sum(1)
        pairs_found = test.verify(found, seed=seed)
        size = (server / variant_file(name)).stat().st_size
        accuracies = (pairs_found.accuracy, pairs_found.accuracy_low, pairs_found.accuracy_high)
        costs.append(PrecisionCost(name, size, float(cosines.mean()), float(cosines.min()), *accuracies))
    return costs


def _payloads(
    method: Method, faces: FaceSet, rows: np.ndarray, batch: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of faces' payloads, `batch` at a time."""
    generator = torch.Generator().manual_seed(seed)
    with evaluating(method), torch.inference_mode():
        for start in range(0, len(rows), batch):
            payload = method.protect(to_tensor(faces.images(rows[start : start + batch])), generator)
            yield {name: tensor.numpy() for name, tensor in payload.tensors.items()}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> Any:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's warnings of folded constants and of weights without channels."""
    onnxruntime.set_default_logger_severity(3)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(2)


def _quantise(source: Path, target: Path, batches: Iterator[Mapping[str, np.ndarray]]) -> None:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # batch norms are folded first, since otherwise they would be quantised separately
        plain = Path(folder) / "plain.onnx"
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        quantize_static(
            plain,
            target,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=_delicate(onnx.load(plain)),
            activation_type=QuantType.QUInt8,
            per_channel=True,
        )


def _delicate(model: onnx.ModelProto) -> list[str]:
    """Names of convolutions to leave in float32: the first, which sees the payload, and the depthwise ones.

    Their input channels differ too much in scale for one 8-bit range, and they hold few weights.
    """
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [
        node.name
        for position, node in enumerate(convolutions)
        if position == 0 or any(part.name == "group" and part.i > 1 for part in node.attribute)
    ]
