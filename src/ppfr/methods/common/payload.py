"""What leaves the client: a typed, self-checking bundle of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ppfr.util.errors import PayloadError
from ppfr.util.tensorfiles import write_tensors
from ppfr.wire import Limits, TensorType, read_message, write_message

_FORMAT = "1"
# what one message may hold: enough for a person's album, far from what would exhaust a server
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a payload: its shape without the batch axis, its type, and what it holds.

    `block_dct` says that it is `block_dct(...).flatten(1, 2)` of images, for any frequencies: that can be sent in fewer
    bytes, see `Payload.to_bytes`.
    """

    shape: tuple[int, ...]
    meaning: str
    dtype: torch.dtype = torch.float32
    block_dct: bool = False

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
        """Mean bytes of one image's payload as written by `to_bytes` (safetensors, zstd)."""
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

    def to_bytes(self, coding: str = "float32", *, contract: str = "") -> bytes:
        """Serialise as safetensors in a zstd frame (no pickle anywhere), bound to a deployment's `contract` if given.

        `coding` is float32 (every bit), float16, int8 (per channel) or dct[:ERROR], which codes block-DCT channels as
        the cosine transform of the colour planes they are linear in, with that relative error, and other floats as
        float16. Whole numbers always keep every bit. Raises PayloadError for an unknown coding and for values it cannot
        hold.
        """
        codings = {name: coding_of(spec, coding) for name, spec in self.schema.tensors.items()}
        return write_message(self.tensors, codings, self._header(contract))

    def _header(self, contract: str = "") -> dict[str, str]:
        return _header(self.schema, contract)

    @classmethod
    def from_bytes(
        cls, data: bytes, schema: PayloadSchema, *, contract: str = "", images: int = _LARGEST_BATCH
    ) -> Payload:
        """Read what `to_bytes` wrote in any coding and check it against `schema` and `contract`.

        Raises PayloadError for truncated, foreign or oversized data, another method's or deployment's payload, wrong
        tensors and values that are not finite. Never inflates more than `images` images' worth of data.
        """
        expected = {name: TensorType(spec.shape, spec.dtype) for name, spec in schema.tensors.items()}
        tensors = read_message(data, expected, _header(schema, contract), Limits(images))
        return cls(schema, tensors).check_finite()

    def save(self, path: Path | str) -> None:
        """Write the payload as a plain safetensors file, atomically."""
        write_tensors(path, self.tensors, {"ppfr-payload-file": _FORMAT, **self._header()})

    @classmethod
    def load(cls, path: Path | str, schema: PayloadSchema) -> Payload:
        """Read a file that `save` wrote; raises PayloadError for a foreign one and as `from_bytes` does."""
        try:
            with safe_open(path, framework="pt") as stream:
                header = stream.metadata() or {}
                if header.get("ppfr-payload-file") != _FORMAT or header.get("method") != schema.method:
                    raise PayloadError(
                        f"{path} holds a payload of {header.get('method')!r}, format "
                        f"{header.get('ppfr-payload-file')!r}; expected {schema.method!r}, format {_FORMAT!r}"
                    )
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise PayloadError(f"{path} is not valid safetensors: {error}") from error
        return cls(schema, tensors).check_finite()


def coding_of(spec: TensorSpec, coding: str) -> str:
    """The coding of one tensor: whole numbers keep every bit, and `dct` is for block-DCT channels only."""
    if not spec.dtype.is_floating_point:
        return "float32"
    if coding.startswith("dct") and not spec.block_dct:
        return "float16"
    return coding


def _header(schema: PayloadSchema, contract: str) -> dict[str, str]:
    return {"method": schema.method, "contract": contract}
