"""The search for images finds them wherever they are put: without this, finding none would prove nothing."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
import torch

from ppfr.data.images import to_tensor
from ppfr.methods import create
from support.deployments import SPEC
from support.leaks import images_in


def picture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (3, 3), 0)


FILE = cv2.imencode(".png", picture()[..., ::-1])[1].tobytes()
JPEG = cv2.imencode(".jpg", picture()[..., ::-1])[1].tobytes()
AS_FLOATS = (picture() / 255).astype(np.float32)
HIDDEN = {
    "its file": FILE,
    "a part of its file": FILE[500:900],
    "another file": JPEG,
    "a JPEG without a JFIF block": b"before" + JPEG[:2] + JPEG[20:],
    "a WebP file": cv2.imencode(".webp", picture())[1].tobytes(),
    "base64": base64.b64encode(FILE),
    "interleaved": picture().tobytes(),
    "BGR": picture()[..., ::-1].tobytes(),
    "planes": picture().transpose(2, 0, 1).tobytes(),
    "columns": picture().transpose(1, 0, 2).tobytes(),
    "grey": cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY).tobytes(),
    "RGBA": np.dstack([picture(), np.full((32, 32), 255, np.uint8)]).tobytes(),
    "a half": picture()[:16].tobytes(),
    "float32 in [0,1]": b"x" + AS_FLOATS.tobytes(),
    "float32 in [-1,1]": (AS_FLOATS * 2 - 1).transpose(2, 0, 1).tobytes(),
    "float16": AS_FLOATS.astype(np.float16).tobytes(),
    "float64 in [0,255]": picture().astype(np.float64).tobytes(),
}


@pytest.mark.parametrize("how", HIDDEN)
def test_an_image_is_found(how: str) -> None:
    around = np.random.default_rng(1).bytes(997)
    assert images_in(around + HIDDEN[how] + around, FILE, [picture()])


def test_a_method_that_protects_nothing_is_found_out() -> None:
    method = create("arcface", SPEC).eval()
    with torch.no_grad():
        payload = method.protect(to_tensor(picture()[None]))
    for coding in ("float32", "float16"):
        assert images_in(payload.to_bytes(coding), b"", [picture()]) == ["pixels of picture 0"]


def test_other_bytes_are_no_image() -> None:
    assert images_in(np.random.default_rng(1).bytes(1 << 17), FILE, [picture()]) == []
    method = create("partialface", SPEC, table="random", table_seed=5).eval()
    with torch.no_grad():
        payload = method.protect(to_tensor(picture()[None]), torch.Generator().manual_seed(0))
    assert images_in(payload.to_bytes("float32"), FILE, [picture()]) == []
