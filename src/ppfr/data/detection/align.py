"""Faces turned, scaled and shifted so that eyes, nose and mouth lie where recognisers expect them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ppfr.data.images import Images
from ppfr.util.errors import DataError

Floats = npt.NDArray[np.float64]

# ArcFace (Deng et al. 2019), as released with InsightFace: eyes, tip of the nose, corners of the mouth, from the left
# of the image to its right, in pixels of a 112 x 112 crop
_TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# a crop of 128 shows the same face at the same scale with 16 more columns and rows, as InsightFace cuts it
_SHIFTS = {112: (0.0, 0.0), 128: (8.0, 0.0)}
CROP_SIZES = tuple(_SHIFTS)


def template(size: int = 112) -> Floats:
    """The five points (5, 2), as (x, y), to which a crop of `size` 112 or 128 is aligned; else raises DataError."""
    if size not in _SHIFTS:
        raise DataError(f"size is {size}; expected {' or '.join(map(str, CROP_SIZES))}, for which ArcFace has points")
    return np.asarray(_TEMPLATE, np.float64) + _SHIFTS[size]


def similarity(points: npt.ArrayLike, target: npt.ArrayLike) -> Floats:
    """The rotation, scale and shift (..., 2, 3) that bring `points` (..., N, 2) closest to `target` (..., N, 2).

    Least squares without reflection (Umeyama 1991, "Least-squares estimation of transformation parameters between two
    point patterns"). Written with complex numbers, in which a similarity of the plane is z -> a z + b: no singular
    value decomposition, and any number of faces at once. Raises DataError for points that are not finite or all in one
    place.
    """
    here, there = (np.ascontiguousarray(part, np.float64).view(np.complex128)[..., 0] for part in (points, target))
    centre, goal = here.mean(-1, keepdims=True), there.mean(-1, keepdims=True)
    spread = (np.abs(here - centre) ** 2).sum(-1)
    if not (np.isfinite(here).all() and np.isfinite(there).all() and (spread > 0).all()):
        raise DataError("landmarks are not finite or all in one place; expected five points of a face")
    turn = (np.conj(here - centre) * (there - goal)).sum(-1) / spread
    shift = goal[..., 0] - turn * centre[..., 0]
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def scale_of(transform: Floats) -> npt.NDArray[Any]:
    """How many pixels of the target a pixel becomes under transforms (..., 2, 3), as (...)."""
    return np.hypot(transform[..., 0, 0], transform[..., 1, 0])


def moved(points: Floats, transform: Floats) -> Floats:
    """Points (N, 2) under a transform (2, 3)."""
    return points @ transform[:, :2].T + transform[:, 2]


def inverted(transform: Floats) -> Floats:
    """The transform (2, 3) that undoes a similarity (2, 3)."""
    back = np.linalg.inv(transform[:, :2])
    return np.column_stack([back, -back @ transform[:, 2]])


def align(image: Images, landmarks: npt.ArrayLike, size: int = 112) -> Images:
    """Cut the face with these five landmarks (5, 2) out of an image (H, W, 3) as (size, size, 3) uint8, upright.

    Landmarks are eyes, nose and mouth corners as (x, y) in pixels, from the left of the image to its right; `size` is
    112 or 128. What lies outside the photograph is black. Raises DataError for another size and impossible landmarks.
    """
    return warp(image, similarity(landmarks, template(size)), size)


def warp(image: Images, transform: Floats, size: int) -> Images:
    """The square of `size` pixels that an image (H, W, C) becomes under a similarity (2, 3); black outside of it.

    A face much larger than the crop is first reduced by area averaging. Reference code samples bilinearly only, which
    looks at four pixels however many fall into one of the crop, so that hair and skin turn into noise.
    """
    step = int(1 / max(float(scale_of(transform)), 1e-6))
    if step > 1:
        image, transform = _reduced(image, transform, size, step)
    return np.asarray(cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def _reduced(image: Images, transform: Floats, size: int, step: int) -> tuple[Images, Floats]:
    """The part of an image that a crop shows, `step` times smaller, and the transform that belongs to it."""
    corners = np.array([(0, 0), (size, 0), (0, size), (size, size)], np.float64)
    around = moved(corners, inverted(transform))
    limits = np.array(image.shape[1::-1])
    first = np.clip(np.floor(around.min(0)) - step, 0, limits - 1).astype(int)
    last = np.clip(np.ceil(around.max(0)) + step, first + 1, limits).astype(int)
    # whole blocks of pixels, but for a part narrower than one
    width, height = np.maximum((last - first) // step, 1)
    part = image[first[1] : first[1] + height * step, first[0] : first[0] + width * step]
    small = cv2.resize(part, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    # pixel k of the small image is the mean of pixels first + k * step ... + step - 1
    turned = transform.copy()
    turned[:, 2] += transform[:, :2] @ (first + (step - 1) / 2)
    turned[:, :2] *= step
    return np.asarray(small, np.uint8), turned
