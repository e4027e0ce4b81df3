"""Attribute inference: what a payload shows of an attribute is read off, and nothing from one that shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppfr.attacks import Has, Inference, Pairs, PublicFaces, ThreatModel, create_attack
from ppfr.attacks.inference.attributes import DARK_HAIR, dark_hair, hair_brightness
from ppfr.attacks.metrics import MetricContext, Truth, attribute_accuracy
from ppfr.methods import Method
from ppfr.util.errors import AttackError, ShapeError
from support.toys import SIZE, smooth_images

Toy = Callable[..., Method]


def portraits(count: int, seed: int) -> Tensor:
    """Smooth images, half of them with a dark top."""
    images = smooth_images(count, seed) * 0.3 + 0.2
    images[::2, :, :4] = images[::2, :, :4] * 0.2 - 0.8
    return images


@pytest.fixture
def public() -> Tensor:
    return portraits(120, 2)


@pytest.fixture
def probes() -> Tensor:
    return portraits(40, 1)


def attack(target: Method, images: Tensor, faces: Any, seed: int = 0, pairs: Any = None, **options: Any) -> Inference:
    payload = target.protect(images, torch.Generator().manual_seed(1))
    found: Inference = create_attack("attribute-inference", **options)(
        target, payload, faces=faces, pairs=pairs, seed=seed
    )
    return found


def accuracy(found: Inference, images: Tensor) -> float:
    return float((found.classes == dark_hair(images)).float().mean())


def edges(images: Tensor) -> dict[str, Tensor]:
    return {"channels": torch.cat([images - images.roll(1, 3), images - images.roll(1, 2)], 1)}


def test_the_measure_sees_the_band_above_the_forehead_whatever_the_exposure(probes: Tensor) -> None:
    true = torch.arange(40) % 2 == 0
    assert torch.equal(dark_hair(probes), true.long())
    darker = (probes + 1) * 0.6 - 1
    assert torch.equal(dark_hair(darker), true.long())
    assert torch.allclose(hair_brightness(darker), hair_brightness(probes), rtol=0.1)
    assert torch.equal(dark_hair(probes.flip(-1)), true.long())
    with pytest.raises(ShapeError):
        dark_hair(probes * 300)


@pytest.mark.parametrize("client", [lambda images: {"image": images}, edges])
def test_what_shows_in_the_payload_is_read_off(toy: Toy, probes: Tensor, public: Tensor, client: Any) -> None:
    found = attack(toy(client), probes, public)
    assert accuracy(found, probes) > 0.9
    assert found.attribute == DARK_HAIR and found.threat == ThreatModel(has=frozenset({Has.FACES, Has.QUERIES}))


def test_a_constant_payload_tells_nothing(toy: Toy, probes: Tensor, public: Tensor) -> None:
    found = attack(toy(lambda images: {"channels": 0 * images}), probes, public)
    assert len(found.classes.unique()) == 1
    figure = found.measure(MetricContext(Truth(probes, np.arange(40))))["attribute_accuracy"]
    assert figure.counts
    assert figure.value == figure.chance == 0.5 and figure.leak == 0


def test_numbers_without_a_place_are_read(toy: Toy, probes: Tensor, public: Tensor) -> None:
    target = toy(lambda images: {"code": torch.cat([images[:, 0, :4].flatten(1), images[:, 1, 12:16].flatten(1)], 1)})
    assert accuracy(attack(target, probes, public), probes) > 0.9


def test_pairs_take_the_place_of_faces_and_queries(toy: Toy, probes: Tensor, public: Tensor) -> None:
    target = toy(edges)
    pairs = Pairs(target.protect(public, torch.Generator().manual_seed(8)), public)
    found = attack(target, probes, None, pairs=pairs)
    assert accuracy(found, probes) > 0.9 and found.threat.has == {Has.PAIRS}


def test_labels_may_be_given_and_rare_classes_count(toy: Toy, public: Tensor, probes: Tensor) -> None:
    def level(images: Tensor) -> Tensor:
        return 3 + (images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2)) > 0.02).long()

    found = attack(toy(edges, edges), probes, PublicFaces(public, labels={"red": level(public)}), attribute="red")
    assert set(found.classes.tolist()) <= {3, 4} and found.attribute == "red"
    clear = attack(
        toy(lambda images: {"image": images}),
        probes,
        PublicFaces(public, labels={"red": level(public)}),
        attribute="red",
    )
    context = MetricContext(Truth(probes, np.arange(40)))
    assert clear.metrics(context) == []  # nobody says how to measure "red" on an image
    assert replace(clear, label=level).measure(context)["attribute_accuracy"].value > 0.8


def test_the_same_seed_gives_the_same_classes(toy: Toy, probes: Tensor, public: Tensor) -> None:
    target = toy(edges, lambda images: {"channels": -edges(images)["channels"]})
    first, second = (attack(target, probes, public, seed=3) for _ in range(2))
    assert torch.equal(first.classes, second.classes)


def test_what_cannot_be_learned_is_told(toy: Toy, probes: Tensor, public: Tensor) -> None:
    with pytest.raises(AttackError, match=r"no labels 'smile', only \['red'\]"):
        attack(toy(edges), probes, PublicFaces(public, labels={"red": torch.arange(120)}), attribute="smile")
    with pytest.raises(AttackError, match="all 60 examples are of class 1 of 'dark hair'"):
        attack(toy(edges), probes, public[::2])


def test_accuracy_counts_classes_alike_and_bootstraps_people() -> None:
    images = torch.zeros(10, 3, *SIZE)
    true = torch.tensor([1] * 8 + [0] * 2)
    truth = Truth(images, np.arange(10) // 2)
    figure = attribute_accuracy(torch.ones(10, dtype=torch.int64), true, "toy", truth)
    assert figure.value == 0.5 and figure.chance == 0.5 and figure.leak == 0
    figure = attribute_accuracy(true.clone(), true, "toy", truth)
    assert figure.value == figure.interval.high == 1 and 0.4 < figure.interval.low < 0.9
    figure = attribute_accuracy(torch.tensor([1, 0] * 5), true, "toy", truth)
    assert figure.interval.low <= figure.value <= figure.interval.high
    with pytest.raises(AttackError, match="all 10 images are of class 3 of 'toy'"):
        attribute_accuracy(true, torch.full((10,), 3), "toy", truth)
