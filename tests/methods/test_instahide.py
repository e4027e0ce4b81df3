"""InstaHide: what a mixture holds, whom a mixed label names, and that nothing is left of it at k = 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.instahide import LARGEST_WEIGHT, draw_partners, draw_weights
from ppfr.util.errors import MethodError


def small(**options: object) -> Method:
    return ppfr.create("instahide", "mobilefacenet", width=0.25, embedding_size=32, **options)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((6, 3, 112, 112), generator=drawn(5)) * 2 - 1


def test_one_image_without_signs_is_the_unprotected_method(images: Tensor) -> None:
    hidden = small(k=1, signs=False)
    plain = ppfr.create("arcface", "mobilefacenet", width=0.25, embedding_size=32)
    assert torch.equal(hidden.protect(images, drawn())["image"], images)
    assert torch.equal(hidden(images), plain(images))
    (client,) = hidden.hypotheses()
    assert torch.equal(client.apply(images)["image"], images)


@given(count=st.integers(1, 20), k=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_weights_are_shares_none_too_large(count: int, k: int, seed: int) -> None:
    weights = draw_weights(count, k, drawn(seed), torch.device("cpu"))
    assert torch.allclose(weights.sum(1), torch.ones(count), atol=1e-5)
    assert bool((weights >= 0).all())
    if k > 1:
        assert float(weights.max()) <= LARGEST_WEIGHT + 1e-6
        if k > 2:
            assert bool((weights[:, 0] >= weights[:, 1] - 1e-5).all())


@given(partners=st.integers(0, 5), extra=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_partners_are_others_and_all_different(partners: int, extra: int, seed: int) -> None:
    rows = draw_partners(partners + extra, partners, drawn(seed), torch.device("cpu"))
    for own, others in enumerate(rows.tolist()):
        assert own not in others and len(set(others)) == partners


def test_a_mixture_inside_is_the_weighted_sum_it_says(images: Tensor) -> None:
    client = small(partners="inside", signs=False).client
    mixed, shown = client(images, drawn(3))
    wanted = torch.stack(
        [
            sum(weight * images[row] for row, weight in zip(rows, weights, strict=True))
            for rows, weights in zip(shown.rows.tolist(), shown.weights.tolist(), strict=True)
        ]
    )
    assert torch.allclose(mixed, wanted, atol=1e-6)
    assert shown.rows[:, 0].tolist() == list(range(6))


def test_a_cross_mixture_names_its_own_image_alone(images: Tensor) -> None:
    client = small().client
    _, shown = client(images, drawn(3))
    assert shown.rows.flatten().tolist() == list(range(6)) and bool((shown.weights == 1).all())
    assert client.public.shape == (64, 3, 112, 112) and float(client.public.abs().max()) <= 1
    # so that one image can be protected alone
    assert len(small().protect(images[:1], drawn())) == 1


def test_signs_hide_nothing_but_the_sign(images: Tensor) -> None:
    flipped, plain = small(partners="inside"), small(partners="inside", signs=False)
    with_signs = flipped.protect(images, drawn(7))["image"]
    without = plain.protect(images, drawn(7))["image"]
    assert torch.equal(with_signs.abs(), without.abs())
    assert 0.49 < float((with_signs == without).float().mean()) < 0.51
    # so the server may drop it
    other = torch.where(torch.rand(with_signs.shape, generator=drawn(1)) < 0.5, with_signs, -with_signs)
    assert torch.equal(flipped.server({"image": with_signs}), flipped.server({"image": other}))


def test_training_is_told_who_is_in_a_mixture(images: Tensor) -> None:
    (stage,) = small(partners="inside", k=3).stages()
    step = stage.forward(images, torch.arange(6), drawn())
    assert step.mixture is not None and step.mixture.rows.shape == (6, 3)
    assert step.embedding.shape == (6, 32)


def test_too_few_images_to_mix_inside_are_refused(images: Tensor) -> None:
    with pytest.raises(MethodError, match=r"3 images are protected together, fewer than the k = 4"):
        small(partners="inside").protect(images[:3])


def test_it_says_that_it_is_broken_and_by_whom() -> None:
    assert small().remarks()[0].startswith("broken: Carlini et al.")
