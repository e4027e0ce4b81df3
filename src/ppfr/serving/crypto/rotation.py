"""A keyed rotation of templates, which keeps their cosines under one key and makes them useless without it."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor

from ppfr.util.errors import GalleryError


class KeyedRotation:
    """An orthogonal map of templates (N,D) drawn from a secret key, uniformly among all of them.

    Inner products stay, so a search engine finds the same; a rotated template alone does not reveal its face. It is no
    encryption: D pairs of templates and rotated templates determine the rotation. Drawn by QR decomposition after
    Stewart (SIAM J. Numer. Anal. 1980). Raises GalleryError for a key of less than 16 bytes.
    """

    def __init__(self, key: bytes, size: int) -> None:
        if len(key) < 16:
            raise GalleryError(f"a rotation key of {len(key)} bytes; expected at least 16")
        normal = keyed_normal(b"ppfr rotation" + size.to_bytes(4, "big") + key, size * size).reshape(size, size)
        orthogonal, triangle = np.linalg.qr(normal)
        self._matrix = torch.from_numpy(orthogonal * np.sign(np.diag(triangle)))
        self.size = size

    def __call__(self, templates: Tensor) -> Tensor:
        """Rotated templates (N,D)."""
        return (templates.double() @ self._matrix.to(templates.device)).to(templates.dtype)

    def inverse(self, templates: Tensor) -> Tensor:
        """The templates (N,D) that were rotated."""
        return (templates.double() @ self._matrix.T.to(templates.device)).to(templates.dtype)


def keyed_uniform(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers (count,) in (0,1) derived from a key, the same on every platform (SHAKE-256)."""
    stream = hashlib.shake_256(key).digest(8 * count)
    return (np.frombuffer(stream, dtype=">u8").astype(np.float64) + 0.5) / 2.0**64


def keyed_normal(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers (count,) derived from a key."""
    found: npt.NDArray[np.float64] = ndtri(np.clip(keyed_uniform(key, count), 1e-300, 1 - 1e-16))
    return found


__all__ = ["KeyedRotation", "keyed_normal", "keyed_uniform"]
