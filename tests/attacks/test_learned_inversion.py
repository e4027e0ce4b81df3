"""Learned inversion: faces come back from what holds them, and the mean face from what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.attacks import Has, Pairs, Recovery, ThreatModel, create_attack
from ppfr.evaluation.metrics.similarity import ssim
from ppfr.methods import Method
from ppfr.util.errors import AttackError
from support.toys import smooth_images

Toy = Callable[..., Method]


def gradients(images: Tensor) -> dict[str, Tensor]:
    """Differences of neighbours and a faint level."""
    right, down = images - images.roll(1, 3), images - images.roll(1, 2)
    return {"channels": torch.cat([right, down, 1e-2 * images], 1) + 0.3}


def attack(target: Method, images: Tensor, faces: Tensor | None, seed: int = 0, **options: Any) -> Recovery:
    pairs, threat = options.pop("pairs", None), options.pop("threat", None)
    payload = target.protect(images, torch.Generator().manual_seed(1))
    found: Recovery = create_attack("learned-inversion", **options)(
        target, payload, faces=faces, pairs=pairs, threat=threat, seed=seed
    )
    return found


def alike(found: Recovery, images: Tensor) -> float:
    return float(ssim(found.images, images / 2 + 0.5).mean())


def trained_and_not(target: Method, images: Tensor) -> list[float]:
    """How alike recoveries are without training and with some."""
    faces = smooth_images(200, 2)
    return [alike(attack(target, images, faces, steps=steps, rate=0.01), images) for steps in (0, 30)]


def test_a_linear_client_is_inverted(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = attack(toy(gradients), images, faces)
    assert alike(found, images) > 0.9
    assert found.threat == ThreatModel(has=frozenset({Has.FACES, Has.QUERIES}))


def test_training_undoes_what_is_not_linear(toy: Toy, images: Tensor) -> None:
    untrained, trained = trained_and_not(toy(lambda images: {"cubes": images**3}), images)
    assert trained > untrained + 0.03


def test_a_constant_payload_gives_the_mean_face_to_everyone(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = attack(toy(lambda images: {"channels": 0 * images + 0.5}), images, faces)
    assert torch.allclose(found.images, found.images[:1].expand_as(found.images), atol=1e-6)
    assert alike(found, images) < 0.3


def test_numbers_without_a_place_give_an_image(toy: Toy, images: Tensor) -> None:
    target = toy(lambda images: {"small": F.adaptive_avg_pool2d(images, (3, 3)).flatten(1)})
    untrained, trained = trained_and_not(target, images)
    assert trained > untrained + 0.04


def test_pairs_take_the_place_of_faces_and_queries(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(gradients)
    pairs = Pairs(target.protect(faces, torch.Generator().manual_seed(8)), faces)
    found = attack(target, images, None, pairs=pairs)
    assert alike(found, images) > 0.9
    assert found.threat.has == {Has.PAIRS}


def test_the_same_seed_gives_the_same_images(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(gradients, lambda images: {"channels": -gradients(images)["channels"]})
    first, second, other = (attack(target, images, faces, seed=seed, steps=4) for seed in (3, 3, 4))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_it_asks_for_faces_or_pairs(toy: Toy, images: Tensor) -> None:
    with pytest.raises(AttackError, match=r"learned-inversion on toy: .*needs public faces; give some as `faces`"):
        attack(toy(gradients), images, None)
    with pytest.raises(AttackError, match="needs query access to the client"):
        attack(toy(gradients), images, images, threat=ThreatModel(has=frozenset({Has.FACES})))
