"""Weakened targets: the same payload's shapes, and the clear image in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ppfr
from ppfr.auditing.controls import IMAGE_IN_PAYLOAD, ClearTemplates, WeakenedPayload, weakened, write_image
from ppfr.methods import Hypothesis, Method, TensorSpec
from ppfr.transforms import block_dct
from ppfr.util.errors import MethodError


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.uint8, torch.int8, torch.int16]),
)
def test_an_image_is_written_into_any_shape(shape: list[int], dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 24, 20) * 2 - 1
    written = write_image(images, {"x": TensorSpec(tuple(shape), "", dtype)})["x"]
    assert tuple(written.shape) == (2, *shape)
    assert torch.isfinite(written).all()
    if not dtype.is_floating_point:
        assert written.min() >= 0 and written.max() <= 127


def test_planes_of_the_images_size_hold_its_colours_as_they_are(images: Tensor) -> None:
    written = write_image(images, {"x": TensorSpec((7, *images.shape[2:]), "")})["x"]
    for channel in range(7):
        assert torch.equal(written[:, channel], images[:, channel % 3])


def test_the_weakened_client_sends_the_same_schema_without_draws(toy: Callable[..., Method], images: Tensor) -> None:
    target = toy(lambda images: {"noise": torch.zeros(len(images), 5, 24, 20), "code": torch.ones(len(images), 7)})
    control = weakened(target, None, templates=False)
    assert control.schema.tensors == target.schema.tensors
    first, second = (control.protect(images, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in control.schema.tensors)
    assert [hypothesis.name for hypothesis in control.hypotheses()] == [IMAGE_IN_PAYLOAD]
    assert not control.info.protects and not control.info.secrets
    with pytest.raises(MethodError, match="has no server"):
        control.embed(first)


def test_a_method_may_weaken_itself(toy: Callable[..., Method], images: Tensor) -> None:
    class Weak(type(toy(lambda images: {"pixels": images}))):  # type: ignore[misc]
        def weakened(self) -> Hypothesis:
            return Hypothesis("noise off", lambda images: {"pixels": images / 2})

    control = WeakenedPayload(Weak([lambda images: {"pixels": 0 * images}]))
    assert control.info.title == "noise off"
    assert torch.equal(control.protect(images)["pixels"], images / 2)


def test_partialface_weakens_itself_to_one_known_kind() -> None:
    target = ppfr.create("partialface", "mobilefacenet", width=0.125, embedding_size=16)
    weak = target.weakened()
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    assert weak is not None
    assert torch.equal(weak.apply(images)["channels"], target.hypotheses()[0].apply(images)["channels"])


def test_duetface_weakens_itself_to_low_frequencies_without_maps() -> None:
    target = ppfr.create("duetface", "mobilefacenet", width=0.125, embedding_size=16)
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    sent = WeakenedPayload(target).protect(images)
    assert torch.equal(sent["channels"][:, [0, 54, 108]], block_dct(images, (0,)).float().flatten(1, 2))
    assert not any(sent[name].any() for name in ("map0", "map1", "map2", "map3"))


def test_templates_are_those_of_a_public_recogniser(toy: Callable[..., Method], images: Tensor) -> None:
    class Recogniser:
        name, embedding_size = "mean", 3

        def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
            return images.mean((2, 3))

    target = toy(lambda images: {"pixels": images})
    own: Any = Recogniser()
    control = weakened(target, own, templates=True)
    assert isinstance(control, ClearTemplates)
    assert control.embedding_size == 3
    assert torch.allclose(control.embed(control.protect(images)), images.mean((2, 3)))
    with pytest.raises(MethodError, match="give one as `recogniser`"):
        weakened(target, None, templates=True)
