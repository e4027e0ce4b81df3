"""The message: coded tensors and a small header as safetensors inside one zstd frame, read with bounded memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zstandard
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ppfr.util.errors import PayloadError
from ppfr.util.tensorfiles import tensor_bytes
from ppfr.wire.codings import TensorType, parse_coding

VERSION = "2"
# for the header and the parts that a coding adds
_SLACK = 1 << 16
_SMALL = 1 << 18


@dataclass(frozen=True)
class Limits:
    """What a reader takes: images a message (64 is an album, far from what exhausts a server)."""

    images: int = 64


def write_message(tensors: Mapping[str, Tensor], codings: Mapping[str, str], header: Mapping[str, str]) -> bytes:
    """Code each tensor (B, ...) as `codings` says of its name; `header` travels along in the clear.

    Raises PayloadError for values that a coding cannot hold.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for suffix, part in parse_coding(codings[name]).encode(tensor.detach().cpu()).items():
            parts[_part_name(name, suffix)] = part
    kinds = {name: codings[name].partition(":")[0] for name in tensors}
    plain = tensor_bytes(parts, {"ppfr-payload": VERSION, "codings": json.dumps(kinds), **header})
    level = 19 if len(plain) <= _SMALL else 6
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(plain)


def read_message(
    data: bytes, expected: Mapping[str, TensorType], header: Mapping[str, str], limits: Limits = Limits()
) -> dict[str, Tensor]:
    """Read what `write_message` wrote: tensors of the `expected` shapes and types, with this `header`.

    Never inflates more than the tensors of `limits.images` images take. Raises PayloadError for data that is cut off,
    damaged, foreign, oversized, of another version or with another header, and for parts of wrong shapes or types.
    """
    plain = _inflate(data, _largest(expected, limits))
    metadata = _safetensors_header(plain)
    _check_header(metadata, header)
    try:
        parts = load_tensors(plain)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PayloadError(f"payload is not valid safetensors: {error}") from error
    return _decode(parts, _codings(metadata), expected, limits)


def _largest(expected: Mapping[str, TensorType], limits: Limits) -> int:
    return limits.images * sum(_elements(part) * max(part.dtype.itemsize, 4) for part in expected.values()) + _SLACK


def _elements(part: TensorType) -> int:
    count = 1
    for length in part.shape:
        count *= length
    return count


def _inflate(data: bytes, limit: int) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(data)
        # the frame says what it holds; the decompressor refuses a frame that holds more
        if frame.content_size > limit or frame.window_size > max(limit, 1 << 20):
            raise PayloadError(
                f"payload of {len(data)} bytes inflates to more than {limit} bytes, or does not say how many; refused"
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(limit, 1 << 20))
        return decompressor.decompress(data, max_output_size=limit, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadError(f"payload of {len(data)} bytes is no zstd frame ({error}); was it cut off?") from error


def _safetensors_header(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors buffer, or PayloadError; the tensors themselves are not touched."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 < length <= len(data) - 8:
        raise PayloadError(f"payload of {len(data)} bytes is no safetensors buffer; was it cut off?")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"payload has an unreadable safetensors header: {error}") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return metadata if isinstance(metadata, dict) else {}


def _check_header(found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    version = found.get("ppfr-payload")
    if version != VERSION:
        raise PayloadError(
            f"payload format is {version!r}; this version reads {VERSION!r}. "
            "Write payloads with `Payload.to_bytes` or `ppfr protect`"
        )
    for name, value in expected.items():
        if found.get(name) != value:
            raise PayloadError(f"payload was made for {name} {found.get(name)!r}; expected {value!r}")


def _codings(metadata: Mapping[str, Any]) -> dict[str, str]:
    try:
        codings = json.loads(metadata["codings"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"payload does not say how its tensors are coded: {error}") from error
    if not isinstance(codings, dict) or not all(isinstance(value, str) for value in codings.values()):
        raise PayloadError("payload does not say how its tensors are coded; expected a coding for each tensor")
    return codings


def _decode(
    parts: Mapping[str, Tensor], codings: Mapping[str, str], expected: Mapping[str, TensorType], limits: Limits
) -> dict[str, Tensor]:
    missing, unexpected = sorted(expected.keys() - codings.keys()), sorted(codings.keys() - expected.keys())
    if missing or unexpected:
        raise PayloadError(f"payload: missing tensors {missing}, unexpected {unexpected}")
    tensors, taken = {}, set()
    for name, part in expected.items():
        coding = parse_coding(codings[name])
        own = {}
        for suffix, wanted in coding.parts(part.shape, part.dtype).items():
            own[suffix] = _checked_part(parts, _part_name(name, suffix), wanted, limits)
            taken.add(_part_name(name, suffix))
        if len({len(tensor) for tensor in own.values()}) > 1:
            raise PayloadError(f"{name!r}: its parts must share the batch axis")
        tensors[name] = coding.decode(own, part.shape, part.dtype)
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise PayloadError("payload: its tensors hold different numbers of images; they must share the batch axis")
    if parts.keys() - taken:
        raise PayloadError(f"payload: unexpected tensors {sorted(parts.keys() - taken)}")
    return tensors


def _checked_part(parts: Mapping[str, Tensor], name: str, wanted: TensorType, limits: Limits) -> Tensor:
    if name not in parts:
        raise PayloadError(f"payload: missing tensors [{name!r}]")
    part = parts[name]
    if tuple(part.shape[1:]) != wanted.shape or part.ndim != len(wanted.shape) + 1 or part.dtype != wanted.dtype:
        raise PayloadError(
            f"{name!r} has shape {tuple(part.shape)}, {part.dtype}; expected (B, {', '.join(map(str, wanted.shape))}), "
            f"{wanted.dtype}"
        )
    if len(part) > limits.images:
        raise PayloadError(f"payload holds {len(part)} images; at most {limits.images} are taken at a time")
    return part


def _part_name(tensor: str, suffix: str) -> str:
    return f"{tensor}.{suffix}" if suffix else tensor


__all__ = ["VERSION", "Limits", "read_message", "write_message"]
