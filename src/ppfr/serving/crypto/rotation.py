"""A keyed rotation: templates that keep their cosines among each other and mean nothing to who lacks the key."""

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

    Inner products stay, so a search engine finds the same; which face a rotated template shows cannot be learned from
    it alone. It is no encryption: whoever has D pairs of templates before and behind knows the rotation. Drawn by QR
    after Stewart (SIAM J. Numer. Anal. 1980).
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
    """Numbers (count,) within (0,1) that follow from a key, the same on every platform (SHAKE-256)."""
    stream = hashlib.shake_256(key).digest(8 * count)
    return (np.frombuffer(stream, dtype=">u8").astype(np.float64) + 0.5) / 2.0**64


def keyed_normal(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Numbers (count,) from the standard normal distribution that follow from a key."""
    found: npt.NDArray[np.float64] = ndtri(np.clip(keyed_uniform(key, count), 1e-300, 1 - 1e-16))
    return found


__all__ = ["KeyedRotation", "keyed_normal", "keyed_uniform"]
