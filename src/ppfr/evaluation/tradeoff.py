"""The price of smaller payloads: pair accuracy against bytes over the settings that may change after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.methods import Method
from ppfr.util.errors import DataError, MethodError

SAMPLE = 16


@dataclass(frozen=True)
class TradeoffPoint:
    """One setting: its accuracy with a 95 % interval over people, and the bytes of one image's payload, mean of 16."""

    settings: Mapping[str, Any]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    raw_bytes: int
    sent_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"settings": dict(self.settings)}

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.settings.items()
        )


@dataclass(frozen=True)
class Tradeoff:
    """All settings that were measured on the same pairs; the first is what the others are compared with."""

    method: str
    points: tuple[TradeoffPoint, ...]

    def best(self, loss: float = 0.01) -> TradeoffPoint:
        """The setting that sends fewest bytes among those that lose less than `loss` (a share) to the first."""
        least = self.points[0].accuracy - loss
        return min((p for p in self.points if p is self.points[0] or p.accuracy > least), key=lambda p: p.sent_bytes)

    def to_dict(self, loss: float = 0.01) -> dict[str, Any]:
        """Plain values for JSON, with the best setting."""
        best = {"loses_less_than": loss, **self.best(loss).to_dict()}
        return {"method": self.method, "points": [point.to_dict() for point in self.points], "best": best}


def payload_grid(method: Method, chosen: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
    """Every combination of the settings to measure, first the least lossy; by default of all values a method names.

    Raises MethodError for a method whose payload has no settings, and for settings it does not have.
    """
    known = {name: values for name, values in method.Options.payload_settings().items() if len(values) > 1}
    if not known:
        raise MethodError(f"{method.info.name}: its payload has no settings to change after training")
    foreign = sorted((chosen or {}).keys() - method.Options.payload_settings().keys())
    if foreign:
        raise MethodError(f"{method.info.name}: no payload setting {foreign[0]!r}; it has {', '.join(known)}")
    axes = {name: list(values) for name, values in (chosen or known).items()}
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def measure_tradeoff(
    method: Method,
    faces: FaceSet,
    grid: Sequence[Mapping[str, Any]],
    *,
    flip: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tradeoff:
    """Verify the same pairs of `faces` with each setting of `grid`, with the same draws of the client.

    `flip` as in `evaluate_pairs`. `progress(done, total)` counts settings. Raises DataError for an empty grid and what
    `Method.with_options` raises.
    """
    if not grid:
        raise DataError("no setting to measure; expected at least one")
    rows = np.unique(np.linspace(0, len(faces) - 1, min(SAMPLE, len(faces))).round().astype(int))
    sample = to_tensor(faces.images(rows))
    points = []
    for done, settings in enumerate(grid, start=1):
        changed = method.with_options(**settings)
        result = evaluate_pairs(changed, faces, flip=flip, seed=seed)
        device = next(changed.server.parameters()).device
        with torch.no_grad():
            payload = changed.protect(sample.to(device), torch.Generator(device).manual_seed(seed))
        points.append(
            TradeoffPoint(
                settings,
                result.accuracy,
                result.accuracy_low,
                result.accuracy_high,
                payload.nbytes,
                payload.sent_nbytes,
            )
        )
        if progress is not None:
            progress(done, len(grid))
    return Tradeoff(method.info.name, tuple(points))
