"""Linear inversion: exact where the payload tells all, honest where it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr
from ppfr.attacks import Has, Knows, ThreatModel, create_attack
from ppfr.attacks.inverse.face_prior import to_planes
from ppfr.attacks.inverse.gauss_newton import Linearised
from ppfr.attacks.inverse.hypothesis_search import screen
from ppfr.attacks.inverse.observations import quantiser_steps
from ppfr.evaluation.metrics.similarity import ssim
from ppfr.methods import Method, Payload, PayloadSchema, TensorSpec
from ppfr.util.errors import AttackError

Toy = Callable[..., Method]


def derivatives(images: Tensor, sign: float = 1.0) -> dict[str, Tensor]:
    """Differences of neighbours and a faint mean: local, mixing colours, and complete."""
    right = sign * (images - images.roll(1, 3))
    down = images - images.roll(1, 2)
    right[..., 0], down[..., 0, :] = 0, 0
    faint = 1e-3 * (images + 0.5 * images.flip(1))
    return {"channels": torch.cat([right, down, faint], 1) + 0.3}


def attack(target: Method, images: Tensor, faces: Tensor | None = None, seed: int = 0, **options: Any) -> Any:
    payload = target.protect(images, torch.Generator().manual_seed(seed))
    return create_attack("linear-inversion", **options)(target, payload, faces=faces)


def largest_error(found: Any, images: Tensor) -> float:
    return float((found.images - (images / 2 + 0.5)).abs().max())


@pytest.mark.parametrize("client", [derivatives, lambda images: {"pixels": images}])
def test_a_local_client_is_inverted_exactly(toy: Toy, images: Tensor, faces: Tensor, client: Any) -> None:
    found = attack(toy(client), images, faces)
    assert largest_error(found, images) < 0.5 / 255
    assert "40 public faces" in found.prior
    assert found.threat.has == {Has.FACES}


def test_a_client_that_is_not_local_is_inverted_too(toy: Toy, images: Tensor, faces: Tensor) -> None:
    def client(images: Tensor) -> dict[str, Tensor]:
        return {
            "mirrored": images.flip(3) + 0.2 * images,
            "mean": images.mean((2, 3)),
            "level": images.mean((1, 2, 3))[:, None],
        }

    found = attack(toy(client), images, faces, steps=5)
    assert largest_error(found, images) < 1 / 255
    assert set(found.tensors) == {"mirrored", "mean", "level"}


def test_the_draw_is_found_by_residual_where_energies_do_not_tell(toy: Toy, images: Tensor, faces: Tensor) -> None:
    clients = [derivatives, lambda images: derivatives(images, sign=-1.0)]
    target = toy(*clients)
    kinds = target.draw(images, torch.Generator().manual_seed(3))
    assert len(set(kinds)) == 2
    found = attack(target, images, faces, seed=3)
    assert found.hypotheses == tuple(f"client {kind}" for kind in kinds)
    assert largest_error(found, images) < 0.5 / 255


def test_energies_alone_tell_orders_apart(toy: Toy, images: Tensor, faces: Tensor) -> None:
    from ppfr.attacks.inverse.face_prior import faces_prior
    from ppfr.attacks.inverse.linear_operator import survey

    orders = [torch.arange(9), torch.arange(9).flip(0)]
    target = toy(*[lambda images, o=order: {"channels": derivatives(images)["channels"][:, o]} for order in orders])
    payload = target.protect(images, torch.Generator().manual_seed(5))
    kinds = target.draw(images, torch.Generator().manual_seed(5))
    surveys = [survey(hypothesis, faces_prior(faces)) for hypothesis in target.hypotheses()]
    assert screen(surveys, ["channels"], payload.tensors).argmin(1).tolist() == kinds


def test_without_faces_the_prior_says_so_and_edges_still_show(toy: Toy, images: Tensor) -> None:
    def no_means(images: Tensor) -> dict[str, Tensor]:
        return {"edges": derivatives(images)["channels"][:, :6]}

    found = attack(toy(no_means), images)
    assert "no face was used" in found.prior
    assert found.threat == ThreatModel(knows=Knows.SECRETS)
    # what the payload does not hold is one number a colour: up to that the image is exact
    error = found.images - (images / 2 + 0.5)
    assert float((error - error.mean((2, 3), keepdim=True)).abs().max()) < 2 / 255


def test_tensors_that_are_not_linear_are_left_aside_by_name(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(lambda images: {**derivatives(images), "map": images.square(), "rank": images.argsort(3).float()})
    found = attack(target, images, faces)
    assert found.tensors == ("channels",)
    assert found.notes == {"not linear in the image, not used": "map, rank"}
    assert largest_error(found, images) < 0.5 / 255


def test_a_constant_in_a_payload_does_no_harm(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(lambda images: {**derivatives(images), "version": torch.ones(len(images), 1)})
    found = attack(target, images, faces)
    assert largest_error(found, images) < 0.5 / 255
    assert found.tensors == ("channels",)
    assert found.notes == {"the same for every image, not used": "version"}


def test_a_client_without_gradient_is_refused_by_name(toy: Toy, images: Tensor) -> None:
    target = toy(lambda images: {"channels": (3 * images).round(), "version": torch.ones(len(images), 1)})
    with pytest.raises(AttackError, match=r"toy is neither linear .*hypothesis 'client 0'.*'channels' by 0\.\d+"):
        attack(target, images)


def test_a_client_that_names_no_hypothesis_is_refused(
    toy: Toy, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy(derivatives)
    monkeypatch.setattr(target, "hypotheses", list)
    with pytest.raises(AttackError, match="toy names no hypothesis about its client: its draws are too many"):
        attack(target, images)


def test_a_client_that_is_not_linear_is_inverted_through_its_jacobian(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(lambda images: {"channels": torch.tanh(2 * images) + 0.3 * images.roll(1, 2).square()})
    found = attack(target, images, faces)
    assert found.notes == {"not linear in the image, used through the Jacobian": "channels"}
    assert largest_error(found, images) < 2 / 255
    assert float(found.misfit.max()) < 0.01


def test_a_network_in_float32_is_inverted_and_its_draw_found(toy: Toy, images: Tensor, faces: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(12, 3, 3, 3, generator=generator) for _ in range(2)]
    clients = [lambda images, w=weight: {"features": F.softplus(F.conv2d(images, w, padding=1))} for weight in weights]
    target = toy(*clients)
    kinds = target.draw(images, torch.Generator().manual_seed(3))
    found = attack(target, images, faces, seed=3)
    assert found.hypotheses == tuple(f"client {kind}" for kind in kinds)
    assert largest_error(found, images) < 2 / 255


def test_curved_tensors_help_where_linear_ones_leave_off(toy: Toy, images: Tensor, faces: Tensor) -> None:
    def client(images: Tensor) -> dict[str, Tensor]:
        return {"luma": images.mean(1, keepdim=True), "curved": torch.sigmoid(3 * images)}

    target = toy(client)
    linear, all_tensors = (attack(target, images, faces, tensors=tensors) for tensors in ("affine", "all"))
    assert linear.tensors == ("luma",)
    assert all_tensors.tensors == ("luma", "curved")
    assert largest_error(all_tensors, images) < 2 / 255 < largest_error(linear, images)


def test_the_jacobian_and_its_transpose_are_those_of_differences(toy: Toy, images: Tensor) -> None:
    target = toy(lambda images: {"a": torch.sin(2 * images), "b": images.square().mean((2, 3))})
    planes = to_planes(images[:2].double())
    client = Linearised(target.hypotheses()[0], ["a", "b"], planes)
    noise = torch.randn(planes.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ahead, behind = (Linearised(target.hypotheses()[0], ["a", "b"], planes + h * noise).channels for h in (2, -2))
    pushed = client.forward(noise)
    for one, two, derivative in zip(ahead, behind, pushed, strict=True):
        assert torch.allclose((one - two) / 4, derivative, rtol=0.01, atol=1e-4)
    weights = [torch.ones_like(part) for part in pushed]
    inner = sum(float((w * part).sum()) for w, part in zip(weights, pushed, strict=True))
    assert inner == pytest.approx(float((client.adjoint(weights) * noise).sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_whole_numbers_in_a_payload_are_used(toy: Toy, images: Tensor, faces: Tensor, dtype: torch.dtype) -> None:
    def levels(images: Tensor) -> dict[str, Tensor]:
        return {"levels": 127.5 * (images + 1)}

    target = toy(levels)
    schema = PayloadSchema("toy", {"levels": TensorSpec((3, *images.shape[2:]), "levels", dtype)})
    sent = {"levels": levels(images)["levels"].round().to(dtype)}
    target_class = type("IntegerToy", (type(target),), {"schema": property(lambda self: schema)})
    coarse = target_class([levels])
    found = create_attack("linear-inversion")(coarse, Payload(schema, sent), faces=faces)
    assert found.tensors == ("levels",)
    assert largest_error(found, images) < 1 / 255


def test_a_constant_payload_gives_the_mean_face_to_everyone(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = attack(toy(lambda images: {"channels": 0 * images + 0.5}), images, faces)
    assert float((found.images - found.images[:1]).abs().max()) == 0
    assert float((found.images[0] - (faces.mean(0) / 2 + 0.5)).abs().mean()) < 0.05


def test_coarse_values_are_taken_as_coarse(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(derivatives)
    payload = target.protect(images, torch.Generator())
    step = 0.02
    coarse = Payload(target.schema, {"channels": (payload["channels"] / step).round() * step})
    assert quantiser_steps(coarse["channels"].flatten(2))[:6].tolist() == pytest.approx([step] * 6, rel=1e-3)
    assert quantiser_steps(payload["channels"].flatten(2)).tolist() == [0.0] * 9
    aware = create_attack("linear-inversion")(target, coarse, faces=faces)
    assert float(ssim(aware.images, images / 2 + 0.5).mean()) > 0.9


def test_unknown_noise_is_measured_and_allowed_for(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(derivatives)
    payload = target.protect(images, torch.Generator())
    noise = 0.05 * torch.randn(payload["channels"].shape, generator=torch.Generator().manual_seed(0))
    noisy = Payload(target.schema, {"channels": payload["channels"] + noise})
    found = create_attack("linear-inversion")(target, noisy, faces=faces)
    assert 0.05 < float(found.misfit.mean()) < 1.5
    assert float(ssim(found.images, images / 2 + 0.5).mean()) > 0.6


def test_the_same_payload_gives_the_same_images(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(derivatives, lambda images: derivatives(images, sign=-1.0))
    first, second = attack(target, images, faces), attack(target, images, faces)
    assert torch.equal(first.images, second.images)
    assert first.hypotheses == second.hypotheses


def test_progress_counts_every_payload(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(derivatives, lambda images: derivatives(images, sign=-1.0))
    seen: list[tuple[int, int]] = []
    payload = target.protect(images, torch.Generator())
    create_attack("linear-inversion", steps=0)(
        target, payload, faces=faces, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (6, 6)


def test_the_threat_model_must_grant_the_secrets(toy: Toy, images: Tensor) -> None:
    target = toy(derivatives)
    payload = target.protect(images, torch.Generator())
    with pytest.raises(AttackError, match="needs knowledge of the deployment's secrets"):
        create_attack("linear-inversion")(target, payload, threat=ThreatModel(knows=Knows.PARAMETERS))


def test_real_faces_come_back_from_partialface(golden: Callable[[str], Any]) -> None:
    images = torch.from_numpy(golden("partialface_subsets.npz")["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    target = ppfr.create("partialface", "mobilefacenet", width=0.25, embedding_size=32)
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(18, (3,), generator=torch.Generator().manual_seed(1)).tolist()
    payload = target.protect(images[:3], generator)
    found = create_attack("linear-inversion", steps=20)(target, payload)
    assert found.hypotheses == tuple(f"subset {kind // 3}, order {kind % 3}" for kind in kinds)
    assert float(found.misfit.max()) < 1e-3
    # a mean face has about 0.3; plain conjugate gradients gave 0.59 to 0.85
    assert float(ssim(found.images, images[:3] / 2 + 0.5).min()) > 0.6
