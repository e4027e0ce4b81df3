"""Payload maps: tensors of any payload as maps on the image grid, or as one vector, standardised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.methods.common.payload import Payload, PayloadSchema

# channels in all: a payload with more is reduced to its principal components
MOST_CHANNELS = 48
_LEAST_COMPONENTS = 4
# a component below this share of the strongest one's deviation is not scaled up to unit variance
_FAINT = 1e-2
_DEAD = 1e-9
# positions of each image that enter the statistics
_POSITIONS = 1024


@dataclass(frozen=True)
class _Standardisation:
    """An affine map of one tensor's channels to unit variance: a scale for each, or a matrix (C,N), and an offset."""

    weights: Tensor
    offset: Tensor

    @property
    def width(self) -> int:
        return len(self.offset)

    def __call__(self, channels: Tensor) -> Tensor:
        if self.weights.ndim == 1:
            return torch.addcmul(self.offset[:, None], channels, self.weights[:, None])
        return (self.weights @ channels).add_(self.offset[:, None])


class PayloadMaps:
    """Turns payloads of one schema into maps (B,C,H,W) and a vector (B,V), both of about unit variance.

    The last two axes of a tensor with two or more are resized to the image grid, those before are channels, and their
    mean magnitude is one more channel. Tensors with one axis are joined in the vector. Integers count as their values.
    A payload of more than 48 channels is reduced, tensor by tensor, to its principal components.
    """

    def __init__(self, sample: Payload, size: tuple[int, int]) -> None:
        """Estimate means, scales and components from a sample of payloads; `size` is the image grid (H, W)."""
        self.schema, self.size = sample.schema, size
        self._map_names = [name for name, spec in self.schema.tensors.items() if len(spec.shape) >= 2]
        self._vector_names = [name for name in self.schema.tensors if name not in self._map_names]
        most = _component_counts(self.schema, self._map_names)
        self._standard = {name: _measure(sample[name], most.get(name, 0)) for name in self.schema.tensors}
        self.channels = sum(self._standard[name].width + 1 for name in self._map_names)
        self.length = sum(self._standard[name].width for name in self._vector_names)

    def maps(self, payload: Payload) -> Tensor:
        """Maps (B,C,H,W); C is 0 for a payload of vectors alone."""
        parts = []
        for name in self._map_names:
            tensor = payload[name]
            maps = self._standard[name](_channels(tensor))
            maps = maps.reshape(*maps.shape[:2], *tensor.shape[-2:])
            maps = torch.cat([maps, _magnitude(maps)], 1)
            if tuple(maps.shape[2:]) != self.size:
                maps = F.interpolate(maps, self.size, mode="bilinear", antialias=maps.shape[2] > self.size[0])
            parts.append(maps)
        if parts:
            return torch.cat(parts, 1)
        return next(iter(payload.tensors.values())).new_zeros((len(payload), 0, *self.size), dtype=torch.float32)

    def vectors(self, payload: Payload) -> Tensor:
        """Vectors (B,V); V is 0 for a payload of maps alone."""
        parts = [self._standard[name](_channels(payload[name])).flatten(1) for name in self._vector_names]
        if parts:
            return torch.cat(parts, 1)
        return next(iter(payload.tensors.values())).new_zeros((len(payload), 0), dtype=torch.float32)


def _magnitude(maps: Tensor) -> Tensor:
    """Mean absolute deviation of the standardised channels at each place (B,1,H,W), less 1.

    It is invariant to signs and permutations of channels that a client draws anew for each image.
    """
    deviation, mean = torch.std_mean(maps, (2, 3), correction=0, keepdim=True)
    return (maps - mean).div_(deviation.clamp_min(_DEAD)).abs_().mean(1, keepdim=True) - 1


def _channels(tensor: Tensor) -> Tensor:
    """A payload tensor as float (B,C,N): maps have N positions, vectors one."""
    values = tensor.float()
    places = values.shape[-2:].numel() if values.ndim > 2 else 1
    return values.reshape(len(values), -1, places)


def _component_counts(schema: PayloadSchema, maps: list[str]) -> dict[str, int]:
    """Components that each tensor of maps may keep: small ones all of theirs, large ones equal shares of the rest."""
    counts = {name: int(torch.Size(schema.tensors[name].shape[:-2]).numel()) for name in maps}
    if sum(counts.values()) <= MOST_CHANNELS:
        return counts
    even = MOST_CHANNELS // len(maps)
    large = [name for name in maps if counts[name] > even]
    left = MOST_CHANNELS - sum(counts[name] for name in maps if name not in large)
    return counts | {name: max(_LEAST_COMPONENTS, left // len(large)) for name in large}


def _measure(tensor: Tensor, most: int) -> _Standardisation:
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
        whitening = 1 / strongest.clamp_min(_FAINT * float(strongest[0]) + _DEAD)
        weights = (vectors.flip(1)[:, :most] * whitening).T.to(columns) * weights
        return _Standardisation(weights, -(weights @ shift))
    return _Standardisation(weights, -weights * shift)
