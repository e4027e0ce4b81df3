"""Figures of recovered images: the ceiling for clear images, chance for images that show nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.attacks.base import Recovery, create_attack
from ppfr.attacks.metrics import MetricContext, Truth
from ppfr.data.faceset import FaceSet
from ppfr.data.sources import open_faces
from ppfr.methods import Method
from ppfr.util.errors import AttackError
from support.trials import tried

PEOPLE, PHOTOS = 8, 4


class Judge:
    """Compares pixels, coarsely."""

    name = sha256 = "pixels"

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        return torch.nn.functional.avg_pool2d(images + 0.01, 4).flatten(1)


@pytest.fixture
def faceset(toy: Callable[..., Method]) -> FaceSet:
    """Eight people with four photos each, that a judge of pixels tells apart."""
    rng = np.random.default_rng(0)
    people = rng.integers(0, 255, (PEOPLE, 6, 5, 3)).repeat(4, 1).repeat(4, 2)
    photos = people[:, None] * 0.9 + rng.normal(0, 6, (PEOPLE, PHOTOS, 24, 20, 3))
    pixels = photos.clip(0, 255).astype(np.uint8).reshape(-1, 24, 20, 3)
    names = [str(number) for number in range(len(pixels))]
    owners = [f"person {number // PHOTOS}" for number in range(len(pixels))]
    return FaceSet("toy faces", owners, lambda indices: pixels[indices], names=names)


def test_an_unprotected_client_leaks_all_the_judge_can_see(toy: Callable[..., Method], faceset: FaceSet) -> None:
    target = toy(lambda images: {"pixels": images})
    judge: Any = Judge()
    trial = tried(create_attack("linear-inversion"), target, faceset, judge=judge)
    found = trial.figures["rank1"]
    assert found.value == found.ceiling == found.leak == 1.0
    assert found.chance == 1 / PEOPLE
    assert len(trial.result) == PEOPLE
    assert trial.figures["ssim"].value > 0.99
    assert trial.figures["psnr"].value > 40
    assert "knows the deployment's secrets" in str(trial.result.threat)
    assert json.loads(json.dumps(found.to_dict()))["value"] == 1.0


def test_a_constant_payload_leaks_chance(toy: Callable[..., Method], faceset: FaceSet) -> None:
    target = toy(lambda images: {"pixels": 0 * images})
    judge: Any = Judge()
    found = tried(create_attack("linear-inversion"), target, faceset, judge=judge).figures["rank1"]
    assert found.value == pytest.approx(1 / PEOPLE)
    assert found.interval.low <= 1 / PEOPLE <= found.interval.high
    assert found.leak == pytest.approx(0.0)


def test_a_seed_repeats_a_recovery_which_nobody_identifies_without_a_judge(
    toy: Callable[..., Method], faceset: FaceSet
) -> None:
    target = toy(lambda images: {"pixels": images})
    attack = create_attack("linear-inversion", steps=0)
    first, again = (tried(attack, target, faceset, people=3, photos=2, seed=4) for _ in range(2))
    assert isinstance(first.result, Recovery) and isinstance(again.result, Recovery)
    assert torch.equal(first.result.images, again.result.images)
    assert set(first.figures) == {"ssim", "psnr"}


def test_bad_requests_are_named() -> None:
    found = Recovery(torch.zeros(2, 3, 24, 20))
    judge: Any = Judge()
    with pytest.raises(AttackError, match="3 originals for 2"):
        found.measure(MetricContext(Truth(torch.zeros(3, 3, 24, 20), np.arange(3))))
    with pytest.raises(AttackError, match="needs `gallery`"):
        found.measure(MetricContext(Truth(torch.zeros(2, 3, 24, 20), np.arange(2)), judge))


def test_real_people_are_recognised_in_partialface_payloads(shared: Any) -> None:
    judge = ppfr.load_recogniser(shared / "models" / "mobilefacenet_ms1m.onnx")
    faces = open_faces(shared / "faces" / "test.csv")
    target = ppfr.create("partialface", "mobilefacenet", width=0.25, embedding_size=32)
    found = tried(create_attack("linear-inversion", steps=10), target, faces, judge=judge, people=12).figures
    assert found["rank1"].ceiling is not None
    assert found["rank1"].value >= 0.8 * found["rank1"].ceiling
    assert found["ssim"].value > 0.6
