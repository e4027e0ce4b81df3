"""Any payload as planes on the image grid, and numbers without a place: what networks and filters take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.methods.common.payload import Payload, PayloadSchema

# planes in all: a payload with more is reduced to its principal components
MOST_PLANES = 48
_LEAST_COMPONENTS = 4
# a component below this share of the strongest one's deviation is not blown up to its size
_FAINT = 1e-2
_DEAD = 1e-9
# positions of each image that enter the statistics
_POSITIONS = 1024


@dataclass(frozen=True)
class _Layout:
    """How the channels of one tensor become planes or numbers: a scale for each or a mixture of many, and an offset."""

    weights: Tensor
    offset: Tensor

    @property
    def width(self) -> int:
        return len(self.offset)

    def __call__(self, channels: Tensor) -> Tensor:
        if self.weights.ndim == 1:
            return torch.addcmul(self.offset[:, None], channels, self.weights[:, None])
        return (self.weights @ channels).add_(self.offset[:, None])


class PayloadPlanes:
    """Turns payloads of one schema into planes (B,C,H,W) and numbers (B,V), both of about unit variance.

    A tensor with two axes or more is taken for maps: its last two axes are resized to the image grid, those before are
    channels, and their mean magnitude is one channel more. Other tensors are numbers. Integers count as their values.
    A payload of more than 48 channels is reduced, tensor by tensor, to its principal components.
    """

    def __init__(self, sample: Payload, size: tuple[int, int]) -> None:
        """Measure shifts, scales and components on a sample of payloads; `size` is the image grid (H, W)."""
        self.schema, self.size = sample.schema, size
        self._maps = [name for name, spec in self.schema.tensors.items() if len(spec.shape) >= 2]
        self._numbers = [name for name in self.schema.tensors if name not in self._maps]
        most = _shares(self.schema, self._maps)
        self._layouts = {name: _measure(sample[name], most.get(name, 0)) for name in self.schema.tensors}
        self.channels = sum(self._layouts[name].width + 1 for name in self._maps)
        self.length = sum(self._layouts[name].width for name in self._numbers)

    def planes(self, payload: Payload) -> Tensor:
        """Planes (B,C,H,W); C is 0 for a payload without maps."""
        parts = []
        for name in self._maps:
            tensor = payload[name]
            maps = self._layouts[name](_channels(tensor))
            maps = maps.reshape(*maps.shape[:2], *tensor.shape[-2:])
            maps = torch.cat([maps, _magnitude(maps)], 1)
            if tuple(maps.shape[2:]) != self.size:
                maps = F.interpolate(maps, self.size, mode="bilinear", antialias=maps.shape[2] > self.size[0])
            parts.append(maps)
        if parts:
            return torch.cat(parts, 1)
        return next(iter(payload.tensors.values())).new_zeros((len(payload), 0, *self.size), dtype=torch.float32)

    def numbers(self, payload: Payload) -> Tensor:
        """Numbers (B,V); V is 0 for a payload of maps alone."""
        parts = [self._layouts[name](_channels(payload[name])).flatten(1) for name in self._numbers]
        if parts:
            return torch.cat(parts, 1)
        return next(iter(payload.tensors.values())).new_zeros((len(payload), 0), dtype=torch.float32)


def _magnitude(maps: Tensor) -> Tensor:
    """How much is going on at each place (B,1,H,W): the channels' mean distance from their own means, less 1.

    It survives what a sign, a permutation or a mixture of channels drawn anew for each image would cancel.
    """
    deviation, mean = torch.std_mean(maps, (2, 3), correction=0, keepdim=True)
    return (maps - mean).div_(deviation.clamp_min(_DEAD)).abs_().mean(1, keepdim=True) - 1


def _channels(tensor: Tensor) -> Tensor:
    """A payload tensor as float (B,C,N): maps have N positions, numbers one."""
    values = tensor.float()
    places = values.shape[-2:].numel() if values.ndim > 2 else 1
    return values.reshape(len(values), -1, places)


def _shares(schema: PayloadSchema, maps: list[str]) -> dict[str, int]:
    """How many components each tensor of maps may keep: small ones all of theirs, large ones what is left over."""
    counts = {name: int(torch.Size(schema.tensors[name].shape[:-2]).numel()) for name in maps}
    if sum(counts.values()) <= MOST_PLANES:
        return counts
    even = MOST_PLANES // len(maps)
    large = [name for name in maps if counts[name] > even]
    left = MOST_PLANES - sum(counts[name] for name in maps if name not in large)
    return counts | {name: max(_LEAST_COMPONENTS, left // len(large)) for name in large}


def _measure(tensor: Tensor, most: int) -> _Layout:
    places = tensor.shape[-1] * tensor.shape[-2] if tensor.ndim > 2 else 1
    step = -(-places // _POSITIONS)
    parts = [_channels(tensor[row : row + 1])[:, :, ::step] for row in range(len(tensor))]
    columns = torch.cat(parts).transpose(0, 1).flatten(1)
    deviation, shift = torch.std_mean(columns, 1, correction=0)
    weights = torch.where(deviation > _DEAD, 1 / deviation.clamp_min(_DEAD), 0.0)
    if 0 < most < len(shift):
        centred = (columns - shift[:, None]) * weights[:, None]
        values, vectors = torch.linalg.eigh((centred @ centred.T).double() / centred.shape[1])
        strongest = values.flip(0)[:most].clamp_min(0).sqrt()
        blown = 1 / strongest.clamp_min(_FAINT * float(strongest[0]) + _DEAD)
        weights = (vectors.flip(1)[:, :most] * blown).T.to(columns) * weights
        return _Layout(weights, -(weights @ shift))
    return _Layout(weights, -weights * shift)
