"""A function as a method: its schema is read off, its draws are noticed, its mistakes are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppfr.methods.custom import custom_method
from ppfr.util.errors import MethodError, PayloadError

SIZE = (16, 12)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def halve(images: Tensor, generator: torch.Generator) -> Tensor:
    return images / 2


def noisy(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "sum": images + torch.randn(images.shape, generator=generator),
        "level": (images.mean((1, 2, 3)) > 0)[:, None],
    }


def test_a_function_without_draws_is_its_own_hypothesis(images: Tensor) -> None:
    method = custom_method("half", halve, input_size=SIZE)
    payload = method.protect(images)
    assert torch.equal(payload["payload"], images / 2)
    (only,) = method.hypotheses()
    assert torch.equal(only.apply(images)["payload"], images / 2)
    assert method.weakened() is None
    assert not method.training


def test_a_function_with_draws_has_only_the_hypotheses_it_is_given(images: Tensor) -> None:
    method = custom_method("noisy", noisy, input_size=SIZE)
    assert method.hypotheses() == []
    assert method.schema.tensors["level"].dtype == torch.bool
    one, two = (method.protect(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one["sum"], two["sum"])
    known = custom_method(
        "noisy", noisy, clients={"no noise": lambda images: noisy(images, torch.Generator())}, input_size=SIZE
    )
    assert [hypothesis.name for hypothesis in known.hypotheses()] == ["no noise"]


def test_a_server_gives_accuracy_and_templates(images: Tensor) -> None:
    method = custom_method("half", halve, embed=lambda tensors: tensors["payload"].mean((2, 3)), input_size=SIZE)
    assert method.embedding_size == 3
    assert method(images).shape == (3, 3)
    without = custom_method("half", halve, input_size=SIZE)
    with pytest.raises(MethodError, match="half has no server; give one as `embed`"):
        without(images)
    with pytest.raises(MethodError, match="has no server"):
        _ = without.embedding_size


def test_the_weakened_client_is_a_hypothesis(images: Tensor) -> None:
    weak = custom_method("noisy", noisy, weakened=lambda images: {"sum": images}, input_size=SIZE).weakened()
    assert weak is not None
    assert torch.equal(weak.apply(images)["sum"], images)


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(MethodError, match=r"made 'payload' \(3, 16, 12\) of 4 images; expected \(4, \.\.\.\)"):
        custom_method("mean", lambda images, generator: images.mean(0), input_size=SIZE)


def test_a_client_that_changes_its_shape_is_refused(images: Tensor) -> None:
    method = custom_method("crop", lambda images, generator: images[..., : 2 * len(images)], input_size=SIZE)
    with pytest.raises(PayloadError, match="has shape"):
        method.protect(images)
