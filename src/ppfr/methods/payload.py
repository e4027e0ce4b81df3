"""What leaves the client: a typed, self-checking bundle of tensors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ppfr.errors import PayloadError
from ppfr.files import atomic_write

_FORMAT = "1"
# what one message may hold: enough for a person's album, far from what would exhaust a server
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a payload: its shape without the batch axis, its type, and what it holds."""

    shape: tuple[int, ...]
    meaning: str
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes of this tensor for one image."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class PayloadSchema:
    """The names, shapes and types of a method's payload; two parties agree on it before they talk."""

    method: str
    tensors: Mapping[str, TensorSpec]

    @property
    def nbytes(self) -> int:
        """Bytes of one image's payload before any coding."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def describe(self) -> str:
        """One line for a person, for example `channels (27, 112, 112) float32`."""
        return ", ".join(
            f"{name} {spec.shape} {str(spec.dtype).removeprefix('torch.')}" for name, spec in self.tensors.items()
        )

    def check(self, tensors: Mapping[str, Tensor]) -> int:
        """Return the batch size of `tensors`, or raise PayloadError naming the first thing that does not fit."""
        missing = sorted(self.tensors.keys() - tensors.keys())
        unexpected = sorted(tensors.keys() - self.tensors.keys())
        if missing or unexpected:
            raise PayloadError(
                f"payload of {self.method!r}: missing tensors {missing}, unexpected {unexpected}; "
                f"expected exactly {self.describe()}"
            )
        sizes: dict[str, int] = {}
        for name, spec in self.tensors.items():
            tensor = tensors[name]
            if tensor.ndim != len(spec.shape) + 1 or tuple(tensor.shape[1:]) != spec.shape:
                expected = ", ".join(["B", *map(str, spec.shape)])
                raise PayloadError(f"{name!r} has shape {tuple(tensor.shape)}; {self.method} expects ({expected})")
            if tensor.dtype != spec.dtype:
                raise PayloadError(f"{name!r} has dtype {tensor.dtype}; {self.method} expects {spec.dtype}")
            sizes[name] = tensor.shape[0]
        if len(set(sizes.values())) != 1:
            raise PayloadError(f"tensors of one payload must share the batch axis; found {sizes}")
        return next(iter(sizes.values()))


class Payload:
    """Everything a server, an eavesdropper or a stolen log can see of a batch of images.

    Raises PayloadError when the tensors do not match the schema. `payload.check_finite()` also refuses NaN and
    infinity; it costs a pass over the data, so it runs where payloads arrive from outside.
    """

    def __init__(self, schema: PayloadSchema, tensors: Mapping[str, Tensor]) -> None:
        self.schema = schema
        self.tensors = {name: tensors[name] for name in schema.tensors if name in tensors}
        self._batch = schema.check(tensors)

    def __len__(self) -> int:
        return self._batch

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[Payload]:
        return (self.select([row]) for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Payload({self.schema.method}, batch {len(self)}: {self.schema.describe()})"

    @property
    def nbytes(self) -> int:
        """Bytes of one image's payload as raw tensors."""
        return self.schema.nbytes

    @property
    def sent_nbytes(self) -> int:
        """Mean bytes of one image's payload as written by `to_bytes` (safetensors, deflated)."""
        return round(sum(len(one.to_bytes()) for one in self) / len(self)) if len(self) else 0

    def select(self, rows: Iterable[int]) -> Payload:
        """The payload of some of the images, by row."""
        index = list(rows)
        return Payload(self.schema, {name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Payload:
        """The same payload on another device."""
        return Payload(self.schema, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def concatenate(payloads: Iterable[Payload]) -> Payload:
        """Join payloads of one schema along the batch axis; raises PayloadError for none or for mixed schemas."""
        parts = list(payloads)
        if not parts:
            raise PayloadError("cannot concatenate no payloads; give at least one")
        schema = parts[0].schema
        others = {part.schema.method for part in parts if part.schema != schema}
        if others:
            raise PayloadError(f"cannot concatenate payloads of {schema.method!r} with those of {sorted(others)}")
        return Payload(schema, {name: torch.cat([part[name] for part in parts]) for name in schema.tensors})

    def check_finite(self) -> Payload:
        """Return self, or raise PayloadError naming the tensor that holds NaN or infinity."""
        for name, tensor in self.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise PayloadError(f"{name!r} holds values that are not finite; a client never sends such values")
        return self

    def to_bytes(self) -> bytes:
        """Serialise as deflated safetensors with the method's name in the header (no pickle anywhere)."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return zlib.compress(save_tensors(plain, metadata=self._header()), level=6)

    def _header(self) -> dict[str, str]:
        return {"ppfr-payload": _FORMAT, "method": self.schema.method}

    @classmethod
    def from_bytes(cls, data: bytes, schema: PayloadSchema) -> Payload:
        """Read what `to_bytes` wrote and check it against `schema`.

        Raises PayloadError for truncated, foreign or oversized data, another method's payload, wrong tensors and
        values that are not finite. Never inflates more than 64 images' worth of data.
        """
        limit = _LARGEST_BATCH * schema.nbytes + (1 << 16)
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(data, limit)
            complete = inflater.eof
        except zlib.error as error:
            raise PayloadError(
                f"payload of {len(data)} bytes is not deflated data ({error}); was it cut off?"
            ) from error
        if not complete:
            raise PayloadError(f"payload is cut off or inflates to more than {limit} bytes; refused")
        header = _safetensors_header(plain)
        if header.get("ppfr-payload") != _FORMAT:
            raise PayloadError(
                f"payload format is {header.get('ppfr-payload')!r}; this version reads {_FORMAT!r}. "
                "Write payloads with `Payload.to_bytes` or `ppfr protect`"
            )
        if header.get("method") != schema.method:
            raise PayloadError(
                f"payload was made by method {header.get('method')!r}; the server runs {schema.method!r}"
            )
        try:
            tensors = load_tensors(plain)
        except (SafetensorError, ValueError, KeyError) as error:
            raise PayloadError(f"payload is not valid safetensors: {error}") from error
        return cls(schema, tensors).check_finite()

    def save(self, path: Path | str) -> None:
        """Write the payload as a plain safetensors file, atomically."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        atomic_write(path, save_tensors(plain, metadata=self._header()))

    @classmethod
    def load(cls, path: Path | str, schema: PayloadSchema) -> Payload:
        """Read a file that `save` wrote; raises PayloadError as `from_bytes` does."""
        return cls.from_bytes(zlib.compress(Path(path).read_bytes(), level=0), schema)


def _safetensors_header(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors buffer, or PayloadError; the tensors themselves are not touched."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 < length <= len(data) - 8:
        raise PayloadError(f"payload of {len(data)} bytes is no safetensors buffer; was it cut off?")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise PayloadError(f"payload has an unreadable safetensors header: {error}") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return metadata if isinstance(metadata, dict) else {}
