"""InsightFace's verification files, read without trusting them.

A `.bin` file is a pickle, and unpickling runs whatever functions the file names. Here the few names that such
files use stand for small inert objects of our own, created for each file; any other name is refused. So
not even NumPy sees the file's values, and files written with any NumPy (1 or 2) and any Python (2 or 3) read
the same.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppfr.util.errors import DataError

# (module, name) -> the stand-in's attribute; NumPy 2 moved its private modules from numpy.core to numpy._core
_ALLOWED = {
    ("numpy", "ndarray"): "array_type",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "reconstruct" for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): "scalar" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "frombuffer" for core in ("core", "_core")},
}
_BYTE_TYPES = frozenset({"u1", "i1", "b1", "?"})


def read_bin(path: Path) -> tuple[list[bytes], list[bool]]:
    """The encoded images (2 P) and truth values (P) of an InsightFace .bin file.

    Images may be bytes or arrays of bytes, truth values booleans of Python or NumPy, or one array of them.
    Raises DataError when the file cannot be read, is cut short, is not such a pickle, or names anything else.
    """
    try:
        # BytesIO: the unpickler then never reserves memory for more bytes than there are
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _RefusedName as error:
        raise DataError(f"{path}: refused, {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise DataError(f"{path}: not an InsightFace .bin file, or damaged ({_reason(error)})") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not isinstance(content[0], (tuple, list)):
        raise DataError(f"{path}: holds {_kind(content)}; expected (list of encoded images, list of booleans)")
    images = [_image(item, f"{path}, image {number}") for number, item in enumerate(content[0])]
    same = _booleans(content[1], path)
    if len(images) != 2 * len(same):
        raise DataError(f"{path}: {len(images)} images for {len(same)} pairs; expected {2 * len(same)}")
    return images, same


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200].rstrip(": ")


def _kind(value: object) -> str:
    return type(value).__name__.lstrip("_").lower()


def _image(item: object, where: str) -> bytes:
    if isinstance(item, _Array):
        return item.data
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    raise DataError(f"{where}: is of type {_kind(item)}; expected bytes or an array of bytes")


def _booleans(values: object, path: Path) -> list[bool]:
    if isinstance(values, _Array):
        values = list(values.data)
    if not isinstance(values, (tuple, list)):
        raise DataError(f"{path}: the truth values are of type {_kind(values)}; expected a list of booleans")
    same: list[bool] = []
    for number, value in enumerate(values):
        plain = value.data[0] if isinstance(value, _Array) and len(value.data) == 1 else value
        if not isinstance(plain, int) or plain not in (0, 1):
            raise DataError(f"{path}: truth value {number} is of type {_kind(plain)}; expected a boolean")
        same.append(bool(plain))
    return same


class _RefusedName(pickle.UnpicklingError):
    pass


# the C unpickler obeys a hostile file that asks for a memo of 2^31 places; Python's own keeps it in a dict
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _ALLOWED.get((module, name))
        if stand_in is None:
            raise _RefusedName(f"it names {module}.{name}, which no list of images needs")
        return _StandIn(stand_in)

    def persistent_load(self, pid: object) -> Any:
        raise _RefusedName("it refers to objects outside the file")


class _StandIn:
    """What the file gets in place of a function of NumPy: callable, without attributes it could change."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any) -> Any:
        return _BUILD[self._name](*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function has no state to set")


class _Dtype:
    """A one-byte element type; nothing else can hold encoded images or booleans."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if text not in _BYTE_TYPES:
            raise pickle.UnpicklingError(f"arrays of {text!r}; expected bytes or booleans")
        self.code = text

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which one-byte elements do not have."""


class _Array:
    """The bytes of an array of one-byte elements, its length checked against its shape."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, _fortran, data = state
        self.fill(shape, dtype, data)

    def fill(self, shape: Any, dtype: object, data: object) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("an array without its bytes")
        sizes = tuple(shape)
        if not all(isinstance(size, int) and size >= 0 for size in sizes) or math.prod(sizes) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {sizes} with {len(data)} bytes")
        self.data = bytes(data)


def _frombuffer(data: object, dtype: object, shape: Any, _order: object, *_: object) -> _Array:
    array = _Array()
    array.fill(shape, dtype, data)
    return array


def _scalar(dtype: object, data: object) -> _Array:
    return _frombuffer(data, dtype, (1,), "C")


def _encode(text: object, encoding: object) -> bytes:
    # how Python 3 writes bytes in the older pickle protocols
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _not_callable(*_: object) -> Any:
    raise pickle.UnpicklingError("an array made by shape alone")


_BUILD: dict[str, Callable[..., Any]] = {
    "array_type": _not_callable,
    "dtype": _Dtype,
    "encode": _encode,
    "reconstruct": lambda *_: _Array(),
    "scalar": _scalar,
    "frombuffer": _frombuffer,
}
