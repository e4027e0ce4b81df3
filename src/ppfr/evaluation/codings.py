"""The cost of a coding of payloads: bytes on the wire against pair accuracy, for the same faces, draws and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.evaluate import BATCH_SIZE, PAIRS, draw_pair_test
from ppfr.methods import Method, Payload
from ppfr.util.errors import DataError, PayloadError

# the first is what the others are compared with
CODINGS = ("float32", "float16", "int8", "dct:0.01", "dct:0.02", "dct:0.05", "dct:0.1")


@dataclass(frozen=True)
class CodingCost:
    """One coding: bytes of an image's message (mean and greatest), accuracy with a 95 % interval over people.

    `lost` is the accuracy of the first coding less that of this one.
    """

    coding: str
    bytes_mean: int
    bytes_most: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    lost: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def codings_for(method: Method, codings: Sequence[str] = CODINGS) -> list[str]:
    """Those of `codings` that differ for a method: `dct` needs block-DCT channels, whole numbers one alone."""
    specs = method.schema.tensors.values()
    if not any(spec.dtype.is_floating_point for spec in specs):
        return list(codings[:1])
    return [coding for coding in codings if not coding.startswith("dct") or any(spec.block_dct for spec in specs)]


def measure_codings(
    method: Method,
    faces: FaceSet,
    codings: Sequence[str] | None = None,
    *,
    genuine: int = PAIRS,
    impostor: int = PAIRS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[CodingCost]:
    """Send faces through each coding, embed what arrives, and verify the same pairs as `evaluate_pairs` without flip.

    `codings` default to `codings_for(method)`; the first is the reference.
    `progress(done, total)` counts faces. Raises DataError for no codings and PayloadError for unknown ones.
    """
    chosen = list(codings_for(method) if codings is None else codings)
    if not chosen:
        raise DataError("no coding to measure; expected at least one")
    test = draw_pair_test(faces, genuine=genuine, impostor=impostor, seed=seed)
    count = len(test.rows)
    sizes: dict[str, list[int]] = {coding: [] for coding in chosen}
    parts: dict[str, list[torch.Tensor]] = {coding: [] for coding in chosen}
    device = next((weight.device for weight in method.server.parameters()), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(2 * seed)
    with evaluating(method), torch.inference_mode():
        for start in range(0, count, BATCH_SIZE):
            images = to_tensor(faces.images(test.rows[start : start + BATCH_SIZE]))
            payload = method.protect(images.to(device), generator)
            for coding in chosen:
                arrived = _send(payload, coding, sizes[coding])
                parts[coding].append(method.embed(arrived.to(device)).float().cpu())
            if progress is not None:
                progress(min(start + BATCH_SIZE, count), count)
    results: list[CodingCost] = []
    for coding in chosen:
        found = test.verify(torch.cat(parts[coding]).numpy(), seed=seed)
        results.append(
            CodingCost(
                coding=coding,
                bytes_mean=round(sum(sizes[coding]) / count),
                bytes_most=max(sizes[coding]),
                accuracy=found.accuracy,
                accuracy_low=found.accuracy_low,
                accuracy_high=found.accuracy_high,
                lost=(results[0].accuracy if results else found.accuracy) - found.accuracy,
            )
        )
    return results


def _send(payload: Payload, coding: str, sizes: list[int]) -> Payload:
    """What arrives of one message an image; their bytes are added to `sizes`."""
    arrived = []
    for one in payload:
        try:
            message = one.to_bytes(coding)
        except PayloadError as error:
            raise PayloadError(f"coding {coding}: {error}") from error
        sizes.append(len(message))
        arrived.append(Payload.from_bytes(message, payload.schema, images=1))
    return Payload.concatenate(arrived)
