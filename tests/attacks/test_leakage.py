"""Leakage: the ceiling for clear images, chance for images that show nothing."""

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
from ppfr.attacks.leakage import measure_leakage, try_attack
from ppfr.data.faceset import FaceSet
from ppfr.data.sources import open_faces
from ppfr.methods import Method
from ppfr.util.errors import AttackError, DataError

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
    trial = try_attack(create_attack("linear-inversion"), target, faceset, judge=judge)
    leak = trial.leakage
    assert leak.rank1 == leak.ceiling_rank1 == 1.0
    assert leak.privacy == 0.0
    assert leak.chance == 1 / PEOPLE
    assert leak.people == leak.queries == len(trial.originals) == PEOPLE
    assert leak.ssim > 0.99
    assert leak.psnr > 40
    assert "Rank-1 100.0%" in str(leak)
    assert "knows the deployment's secrets" in str(leak)
    assert json.loads(json.dumps(leak.to_dict()))["rank1"] == 1.0


def test_a_constant_payload_leaks_chance(toy: Callable[..., Method], faceset: FaceSet) -> None:
    target = toy(lambda images: {"pixels": 0 * images})
    judge: Any = Judge()
    leak = try_attack(create_attack("linear-inversion"), target, faceset, judge=judge).leakage
    assert leak.rank1 == pytest.approx(1 / PEOPLE)
    assert leak.rank1_interval is not None
    assert leak.rank1_interval.low <= 1 / PEOPLE <= leak.rank1_interval.high
    assert leak.privacy == pytest.approx(1.0)


def test_the_queries_are_never_in_the_gallery_and_a_seed_repeats_them(
    toy: Callable[..., Method], faceset: FaceSet
) -> None:
    target = toy(lambda images: {"pixels": images})
    attack = create_attack("linear-inversion", steps=0)
    first, again = (try_attack(attack, target, faceset, people=3, photos=2, seed=4) for _ in range(2))
    assert len(first.search.probes) == 3
    assert len(first.search.gallery) == 6
    assert not set(first.search.probes) & set(first.search.gallery)
    assert torch.equal(first.recovery.images, again.recovery.images)
    assert first.leakage.rank1 is None
    assert "no judge" in str(first.leakage)


def test_bad_requests_are_named(toy: Callable[..., Method], faceset: FaceSet) -> None:
    found = Recovery(torch.zeros(2, 3, 24, 20))
    clear = torch.zeros(2, 3, 24, 20)
    judge: Any = Judge()
    with pytest.raises(AttackError, match="3 originals for 2"):
        measure_leakage(found, torch.zeros(3, 3, 24, 20), [0, 1, 2])
    with pytest.raises(AttackError, match="needs `gallery`"):
        measure_leakage(found, clear, [0, 1], judge=judge)
    target = toy(lambda images: {"pixels": images})
    with pytest.raises(AttackError, match="people is 1"):
        try_attack(create_attack("linear-inversion"), target, faceset, people=1)
    with pytest.raises(DataError, match="expected 2 people"):
        try_attack(create_attack("linear-inversion"), target, faceset, photos=4)


def test_real_people_are_recognised_in_partialface_payloads(shared: Any) -> None:
    judge = ppfr.load_recogniser(shared / "models" / "mobilefacenet_ms1m.onnx")
    faces = open_faces(shared / "faces" / "test.csv")
    target = ppfr.create("partialface", "mobilefacenet", width=0.25, embedding_size=32)
    leak = try_attack(create_attack("linear-inversion", steps=10), target, faces, judge=judge, people=12).leakage
    assert leak.rank1 is not None
    assert leak.ceiling_rank1 is not None
    assert leak.rank1 >= 0.8 * leak.ceiling_rank1
    assert leak.ssim > 0.6
