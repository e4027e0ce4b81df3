"""Optimisation inversion: the image comes back from what determines it, the mean face from what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr import custom_method
from ppfr.attacks import Budget, Has, Knows, Recovery, Sees, ThreatModel, create_attack
from ppfr.attacks.inverse.face_prior import SpectralFaces, faces_prior, smooth_prior
from ppfr.evaluation.metrics.similarity import ssim
from ppfr.methods import Method
from ppfr.util.errors import AttackError

Toy = Callable[..., Method]
SIZE = (24, 20)


def attack(target: Method, images: Tensor, faces: Tensor | None, seed: int = 0, **options: Any) -> Recovery:
    payload = target.protect(images, torch.Generator().manual_seed(3))
    found: Recovery = create_attack("optimisation-inversion", **options)(target, payload, faces=faces, seed=seed)
    return found


def error(found: Recovery, images: Tensor) -> float:
    return float((found.images - (images / 2 + 0.5)).square().mean().sqrt())


def alike(found: Recovery, images: Tensor) -> float:
    return float(ssim(found.images, images / 2 + 0.5).mean())


def edges(images: Tensor, sign: float = 1.0) -> dict[str, Tensor]:
    right = F.pad(images[..., 1:] - images[..., :-1], (1, 0))
    return {"channels": torch.cat([sign * right, 0.1 * images], 1)}


@pytest.mark.parametrize("client", [lambda images: {"pixels": images}, edges])
def test_an_image_that_the_payload_determines_comes_back(toy: Toy, images: Tensor, faces: Tensor, client: Any) -> None:
    found = attack(toy(client), images, faces)
    assert alike(found, images) > 0.95
    assert found.threat == ThreatModel(Sees.PAYLOAD, Knows.SECRETS, frozenset({Has.FACES}))
    assert float(found.misfit.max()) < 0.1  # type: ignore[union-attr]


def test_a_network_is_inverted_and_its_draw_found(toy: Toy, images: Tensor, faces: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(12, 3, 3, 3, generator=generator) for _ in range(3)]
    target = toy(*[lambda images, w=w: {"features": F.softplus(F.conv2d(images, w, padding=1))} for w in weights])
    kinds = target.draw(images, torch.Generator().manual_seed(3))  # type: ignore[operator]
    found = attack(target, images, faces)
    assert found.hypotheses == tuple(f"client {kind}" for kind in kinds)
    assert alike(found, images) > 0.9


def test_the_draw_is_found_where_energies_do_not_tell(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(edges, lambda images: edges(images, sign=-1.0))
    kinds = target.draw(images, torch.Generator().manual_seed(3))  # type: ignore[operator]
    assert len(set(kinds)) == 2
    assert attack(target, images, faces).hypotheses == tuple(f"client {kind}" for kind in kinds)


def test_more_steps_come_closer(toy: Toy, images: Tensor, faces: Tensor) -> None:
    errors = [error(attack(toy(edges), images, faces, steps=steps), images) for steps in (4, 60)]
    assert errors[1] < 0.5 * errors[0]


def test_a_constant_payload_gives_the_mean_face_to_everyone(toy: Toy, images: Tensor, faces: Tensor) -> None:
    with pytest.raises(AttackError, match="toy is not differentiable: under hypothesis 'client 0' no gradient"):
        attack(toy(lambda images: {"channels": torch.full_like(images, 0.5)}), images, faces)
    faint = toy(lambda images: {"channels": images.mean((1, 2, 3), keepdim=True).expand_as(images)})
    found = attack(faint, images, faces)
    mean_face = (faces.mean(0) / 2 + 0.5).expand_as(found.images)
    assert alike(found, images) < 0.3
    flat, expected = (part - part.mean((1, 2, 3), keepdim=True) for part in (found.images, mean_face))
    assert float((flat - expected).abs().mean()) < 0.05


def test_noise_of_a_client_without_hypotheses_is_allowed_for(images: Tensor, faces: Tensor) -> None:
    def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.2 * torch.randn(images.shape, generator=generator)

    found = attack(custom_method("noisy", noisy, input_size=SIZE), images, faces, noise=0.3)
    assert set(found.hypotheses) == {"client without its noise"}
    assert alike(found, images) > 0.7


def test_draws_that_change_the_map_are_taken_for_their_mean(images: Tensor, faces: Tensor) -> None:
    def faded(images: Tensor, generator: torch.Generator) -> Tensor:
        return images * (0.9 + 0.2 * torch.rand(3, 1, 1, generator=generator))

    found = attack(custom_method("faded", faded, input_size=SIZE), images, faces, draws=4)
    assert set(found.hypotheses) == {"mean of 4 draws"}
    assert alike(found, images) > 0.8


def test_tensors_without_gradient_are_left_aside_by_name(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = attack(toy(lambda images: {"pixels": images, "rank": images.argsort(3).float()}), images, faces)
    assert found.tensors == ("pixels",)
    assert found.notes["not differentiable, not used"] == "rank"
    assert alike(found, images) > 0.95


def test_whole_numbers_are_descended_on_by_what_they_were_before_rounding(images: Tensor, faces: Tensor) -> None:
    target = custom_method(
        "levels",
        lambda images, generator: (127.5 * (images + 1)).round().to(torch.uint8),
        clients={"before rounding": lambda images: 127.5 * (images + 1)},
        input_size=SIZE,
    )
    assert alike(attack(target, images, faces), images) > 0.95


def test_without_faces_the_prior_says_so(toy: Toy, images: Tensor) -> None:
    found = attack(toy(lambda images: {"pixels": images}), images, None)
    assert "no face was used" in found.prior
    assert alike(found, images) > 0.95


def test_a_client_that_costs_more_than_the_budget_is_refused(toy: Toy, images: Tensor, faces: Tensor) -> None:
    weight = torch.randn(800, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    target = toy(lambda images: {"features": F.conv2d(images, weight, padding=4)})
    payload = target.protect(images[:1], torch.Generator())
    with pytest.raises(AttackError, match=r"toy takes 9\d M multiply-adds, .*'tiny' ends after 4 steps, too few"):
        create_attack("optimisation-inversion")(target, payload, faces=faces, budget=Budget("tiny", 512, 0.1))


def test_the_same_seed_gives_the_same_images(toy: Toy, images: Tensor, faces: Tensor) -> None:
    first, second = (attack(toy(edges), images, faces, steps=5) for _ in range(2))
    assert torch.equal(first.images, second.images)


def test_rows_do_not_depend_on_each_other(toy: Toy, images: Tensor, faces: Tensor) -> None:
    together, alone = (attack(toy(edges), part, faces, steps=10) for part in (images, images[2:3]))
    assert torch.allclose(together.images[2], alone.images[0], atol=1e-4)


def test_progress_counts_every_step_of_every_payload(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(edges, lambda images: edges(images, sign=-1.0))
    seen: list[tuple[int, int]] = []
    create_attack("optimisation-inversion", steps=4, screening=2)(
        target,
        target.protect(images, torch.Generator()),
        faces=faces,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (6 * (4 + 2 * 2), 6 * (4 + 2 * 2))


def test_white_noise_makes_faces_as_strong_at_every_frequency_as_those_measured() -> None:
    prior = smooth_prior(SIZE, torch.device("cpu"))
    faces = SpectralFaces(prior)
    assert torch.equal(faces.planes(faces.start(1))[0], prior.mean.float())
    spectrum = torch.randn(400, 3, SIZE[0], SIZE[1], generator=torch.Generator().manual_seed(0))
    white = torch.view_as_real(torch.fft.rfft2(spectrum, norm="ortho"))
    made = (faces.planes(white) - prior.mean).square().mean((0, 2, 3)).sqrt()
    assert torch.allclose(made.double(), prior.deviation, rtol=0.1)


def test_the_spectrum_of_faces_falls_with_frequency(faces: Tensor) -> None:
    deviation = SpectralFaces(faces_prior(faces)).deviation
    assert bool((deviation[:, 1, 0] > 4 * deviation[:, SIZE[0] // 2, SIZE[1] // 2]).all())
