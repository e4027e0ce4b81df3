"""Codings: how a tensor is written as the parts of a message, exactly or with a stated loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ppfr.util.errors import PayloadError
from ppfr.wire.dct_coding import COLOURS, FREQUENCIES, CodedChannels, decode_channels, encode_channels

Shape = tuple[int, ...]
_DEFAULT_ERROR = 0.02


@dataclass(frozen=True)
class TensorType:
    """The shape behind the batch axis, and the type, that a reader expects of a tensor."""

    shape: Shape
    dtype: torch.dtype


class Coding(Protocol):
    """A way to write tensors; the parts it makes are named by suffix, the first one has an empty suffix."""

    def parts(self, shape: Shape, dtype: torch.dtype) -> dict[str, TensorType]:
        """Types of the parts that `encode` makes of a tensor (B, *shape)."""
        ...

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """The parts of a tensor (B, ...) on the CPU."""
        ...

    def decode(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The tensor (B, *shape) that was coded; raises PayloadError for parts that no client makes."""
        ...


class Exact:
    """Every bit, with shuffled bytes: first bytes of all values together, and so on, which compresses better."""

    def __init__(self, half: bool = False) -> None:
        self.half = half

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float16 if self.half and dtype.is_floating_point else dtype

    def parts(self, shape: Shape, dtype: torch.dtype) -> dict[str, TensorType]:
        return {"": TensorType((self._stored(dtype).itemsize, *shape), torch.uint8)}

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        stored = tensor.to(self._stored(tensor.dtype)).contiguous()
        if self.half and not bool(torch.isfinite(stored).all()):
            raise PayloadError(f"values up to {float(tensor.abs().max()):g} cannot be coded as float16; use float32")
        values = stored.view(torch.uint8).reshape(*stored.shape, stored.element_size())
        return {"": values.movedim(-1, 1).contiguous()}

    def decode(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        values = parts[""].movedim(1, -1).contiguous()
        return values.view(self._stored(dtype)).squeeze(-1).to(dtype)


class EightBits:
    """Uniform quantisation: 256 levels between the least and the greatest value of each image's channel."""

    def parts(self, shape: Shape, dtype: torch.dtype) -> dict[str, TensorType]:
        channel = TensorType(shape[:1], torch.float32)
        return {"": TensorType(shape, torch.uint8), "low": channel, "step": channel}

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        values = tensor.float().flatten(2) if tensor.ndim > 2 else tensor.float()[..., None]
        low, high = values.amin(2), values.amax(2)
        step = (high - low) / 255
        levels = ((values - low[..., None]) / torch.where(step > 0, step, 1.0)[..., None]).round()
        if not bool(torch.isfinite(levels).all()):
            raise PayloadError("values that are not finite cannot be coded as int8")
        return {"": levels.clamp(0, 255).to(torch.uint8).reshape(tensor.shape), "low": low, "step": step}

    def decode(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        along = (*parts["low"].shape, *[1] * (len(shape) - 1))
        return (parts[""].float() * parts["step"].view(along) + parts["low"].view(along)).to(dtype)


class DctCoding:
    """The cosine transform of the colour planes that block-DCT channels (3 F, H, W) are linear in."""

    def __init__(self, error: float = _DEFAULT_ERROR) -> None:
        if not 0.005 <= error <= 0.5:
            raise PayloadError(f"dct: the relative error is {error}; expected 0.005 .. 0.5")
        self.error = error

    def parts(self, shape: Shape, dtype: torch.dtype) -> dict[str, TensorType]:
        if len(shape) != 3 or shape[0] % COLOURS or min(shape[1:]) < 8 or not dtype.is_floating_point:
            raise PayloadError(f"dct: a tensor of shape {shape}, {dtype} is no stack of block-DCT channels")
        count = shape[0] // COLOURS
        return {
            "": TensorType((2, COLOURS, shape[1] * shape[2]), torch.uint8),
            "frequencies": TensorType((count,), torch.uint8),
            "weights": TensorType((count,), torch.float32),
            "steps": TensorType((COLOURS,), torch.float32),
        }

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        order = _by_frequency(tensor.shape[2], tensor.shape[3])
        parts: dict[str, list[np.ndarray]] = {"": [], "frequencies": [], "weights": [], "steps": []}
        for channels in tensor.double().numpy():
            coded = encode_channels(channels.reshape(COLOURS, -1, *channels.shape[1:]), self.error)
            levels = coded.levels.reshape(COLOURS, -1)[:, order]
            # zigzag coding: small magnitudes of either sign become small numbers, whose upper byte is 0
            folded = ((levels << 1) ^ (levels >> 15)).view(np.uint16)
            parts[""].append(np.stack([folded & 255, folded >> 8]).astype(np.uint8))
            parts["frequencies"].append(coded.frequencies)
            parts["weights"].append(coded.weights)
            parts["steps"].append(coded.steps)
        empty = {name: torch.zeros((0, *part.shape), dtype=part.dtype) for name, part in self._parts(tensor).items()}
        return {name: torch.from_numpy(np.stack(values)) if values else empty[name] for name, values in parts.items()}

    def _parts(self, tensor: Tensor) -> dict[str, TensorType]:
        return self.parts(tuple(tensor.shape[1:]), tensor.dtype)

    def decode(self, parts: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        frequencies, weights, steps = (parts[name].numpy() for name in ("frequencies", "weights", "steps"))
        if (frequencies >= FREQUENCIES).any():
            raise PayloadError(f"dct: frequencies reach {frequencies.max()}; expected 0..{FREQUENCIES - 1}")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise PayloadError("dct: weights must be finite and not negative")
        if not (np.isfinite(steps).all() and (steps >= 0).all()):
            raise PayloadError("dct: steps must be finite and not negative")
        low, high = (parts[""][:, half].numpy().astype(np.uint16) for half in (0, 1))
        folded = low | (high << 8)
        levels = np.empty((len(folded), COLOURS, shape[1] * shape[2]), np.int16)
        levels[..., _by_frequency(*shape[1:])] = ((folded >> 1) ^ -(folded & 1)).view(np.int16)
        result = torch.empty((len(folded), *shape), dtype=dtype)
        for row, image in enumerate(levels.reshape(-1, COLOURS, *shape[1:])):
            channels = decode_channels(CodedChannels(frequencies[row], weights[row], steps[row], image))
            result[row] = torch.from_numpy(channels.reshape(shape)).to(dtype)
        return result


def _by_frequency(height: int, width: int) -> np.ndarray:
    """Indices of the waves of a cosine transform, in the order of their frequencies."""
    distance = (np.arange(height)[:, None] / height) ** 2 + (np.arange(width) / width) ** 2
    return np.argsort(distance.ravel(), kind="stable")


_MAKERS: dict[str, Callable[[], Coding]] = {
    "float32": Exact,
    "float16": lambda: Exact(half=True),
    "int8": EightBits,
    "dct": DctCoding,
}
CODINGS = tuple(_MAKERS)


def parse_coding(name: str) -> Coding:
    """The coding called `float32` (every bit), `float16`, `int8` or `dct[:ERROR]`; raises PayloadError."""
    kind, colon, setting = name.partition(":")
    if kind not in _MAKERS or (colon and kind != "dct"):
        raise PayloadError(f"no coding {name!r}; expected {', '.join(CODINGS)} or dct:ERROR, for example dct:0.02")
    if not colon:
        return _MAKERS[kind]()
    try:
        return DctCoding(float(setting))
    except ValueError as error:
        raise PayloadError(f"coding {name!r}: {error}") from error
