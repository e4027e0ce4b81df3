"""Multi-query union: several payloads of an image give more than one, and what they share gives no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr import custom_method
from ppfr.attacks import Has, Knows, Recovery, Sees, ThreatModel, create_attack
from ppfr.attacks.inverse.observations import Observed, distinct_payloads
from ppfr.methods import Method
from ppfr.util.errors import AttackError

Toy = Callable[..., Method]
SIZE = (24, 20)


def sent(target: Method, images: Tensor, each: int) -> list[Any]:
    return [target.protect(images, torch.Generator().manual_seed(100 + number)) for number in range(each)]


def union(target: Method, images: Tensor, faces: Tensor | None, each: int, seed: int = 0, **options: Any) -> Recovery:
    payloads = sent(target, images, each)
    found: Recovery = create_attack("multi-query-union", **options)(target, payloads, faces=faces, seed=seed)
    return found


def error(found: Recovery, images: Tensor) -> float:
    return float((found.images - (images / 2 + 0.5)).square().mean().sqrt())


def noisy(strength: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A client that adds noise to edges and, faintly, to pixels; its draws are too many to list."""

    def protect(images: Tensor, generator: torch.Generator) -> Tensor:
        clear = torch.cat([edges(images)["edges"], 0.3 * images], 1)
        return clear + strength * torch.randn(clear.shape, generator=generator)

    return protect


def edges(images: Tensor) -> dict[str, Tensor]:
    """Differences of neighbours, 0 in the first column."""
    return {"edges": F.pad(images[..., 1:] - images[..., :-1], (1, 0))}


def bands(images: Tensor, kind: int) -> dict[str, Tensor]:
    """Every third column, from the `kind`-th on; the others are never sent."""
    mask = torch.zeros(images.shape[3])
    mask[kind::3] = 1
    return {"pixels": images * mask}


def test_what_one_payload_leaves_out_others_show(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(*[lambda images, k=kind: bands(images, k) for kind in range(3)])
    one, many = (union(target, images, faces, each) for each in (1, 12))
    assert error(many, images) < 0.5 / 255
    assert error(one, images) > 20 * error(many, images)
    assert set(many.hypotheses) == {"client 0 + client 1 + client 2"}
    assert many.threat == ThreatModel(Sees.PAYLOADS_OF_IMAGE, Knows.SECRETS, frozenset({Has.FACES}))


def test_noise_averages_out(images: Tensor, faces: Tensor) -> None:
    target = custom_method("noisy", noisy(0.1), input_size=SIZE)
    errors = [error(union(target, images, faces, each), images) for each in (1, 16)]
    assert errors[1] < 0.6 * errors[0]


def test_noise_averages_out_under_a_known_client_too(images: Tensor, faces: Tensor) -> None:
    clean = noisy(0.0)
    target = custom_method(
        "noisy", noisy(0.1), clients={"clean": lambda images: clean(images, torch.Generator())}, input_size=SIZE
    )
    errors = [error(union(target, images, faces, each), images) for each in (1, 16)]
    assert errors[1] < 0.6 * errors[0]


def test_one_payload_is_attacked_as_linear_inversion_does(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(edges)
    alone = create_attack("linear-inversion")(target, sent(target, images, 1), faces=faces)
    assert torch.equal(union(target, images, faces, 1).images, alone.images)


def test_equal_payloads_give_no_more_than_one(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(edges)
    one, many = (union(target, images, faces, each) for each in (1, 4))
    assert torch.equal(one.images, many.images)


def test_payloads_that_repeat_others_are_left_out() -> None:
    """Payloads of two images in two tensors: the second payload is new in one tensor only, and that counts."""
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5, 6])}
    second = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5, 7])}

    def joined(*payloads: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat([payload[name] for payload in payloads]) for name in first}

    for given, kept in (
        ([first], [first]),
        ([first, first, first], [first]),
        ([first, second, second], [first, second]),
        ([first, second, first], [first, second]),
    ):
        found, each = distinct_payloads(joined(*given), len(given))
        assert each == len(kept)
        assert all(torch.equal(found[name], values) for name, values in joined(*kept).items())


def test_an_unprotected_image_comes_back(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = union(toy(lambda images: {"pixels": images}), images, faces, 3)
    assert float((found.images - (images / 2 + 0.5)).abs().max()) < 0.5 / 255


def test_a_constant_payload_gives_the_mean_face_to_everyone(toy: Toy, images: Tensor, faces: Tensor) -> None:
    found = union(toy(lambda images: {"channels": 0 * images + 0.5}), images, faces, 3)
    assert float((found.images - found.images[:1]).abs().max()) == 0
    assert float((found.images[0] - (faces.mean(0) / 2 + 0.5)).abs().mean()) < 0.05


def test_clients_that_are_not_linear_are_joined_through_their_jacobians(
    toy: Toy, images: Tensor, faces: Tensor
) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(2, 3, 3, 3, generator=generator) for _ in range(2)]
    target = toy(*[lambda images, w=w: {"features": F.softplus(F.conv2d(images, w, padding=1))} for w in weights])
    few = images[:2]
    one, many = (union(target, few, faces, each, newton=6, iterations=15) for each in (1, 4))
    assert set(many.hypotheses) == {"client 0 + client 1"}
    assert error(many, few) < 0.5 * error(one, few)
    assert many.notes == {"not linear in the image, used through the Jacobian": "features"}


def test_whole_numbers_average_to_what_lies_between(images: Tensor, faces: Tensor) -> None:
    def dithered(images: Tensor, generator: torch.Generator) -> Tensor:
        levels = 4 * (images + 1)
        return (levels + torch.rand(levels.shape, generator=generator)).floor().to(torch.uint8)

    target = custom_method("dithered", dithered, clients={"mean": lambda images: 4 * (images + 1)}, input_size=SIZE)
    errors = [error(union(target, images, faces, each), images) for each in (1, 16)]
    assert errors[1] < 0.6 * errors[0]


def test_the_same_payloads_give_the_same_images(toy: Toy, images: Tensor, faces: Tensor) -> None:
    target = toy(*[lambda images, k=kind: bands(images, k) for kind in range(3)])
    first, second = (union(target, images, faces, 4) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.hypotheses == second.hypotheses


def test_draws_that_do_more_than_add_noise_are_refused(images: Tensor, faces: Tensor) -> None:
    def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
        return images.flatten(2)[:, :, torch.randperm(images[0, 0].numel(), generator=generator)]

    target = custom_method("shuffled", shuffled, input_size=SIZE)
    with pytest.raises(AttackError, match=r"multi-query-union on shuffled: .*its draws do more than add noise: .*by 1"):
        union(target, images, faces, 3)


def test_rounded_noise_without_a_client_to_assume_is_refused(images: Tensor, faces: Tensor) -> None:
    def rounded(images: Tensor, generator: torch.Generator) -> Tensor:
        return (3 * images + torch.rand(images.shape, generator=generator)).floor()

    with pytest.raises(AttackError, match="rounded is not differentiable: under hypothesis 'draw 0' no gradient"):
        union(custom_method("rounded", rounded, input_size=SIZE), images, faces, 3)


def test_one_payload_of_each_image_must_not_be_all_that_is_seen(toy: Toy, images: Tensor) -> None:
    target = toy(lambda images: {"pixels": images})
    with pytest.raises(AttackError, match="several payloads of one image"):
        create_attack("multi-query-union")(
            target, sent(target, images, 2), threat=ThreatModel(Sees.PAYLOAD, Knows.SECRETS)
        )


def test_payloads_of_an_image_are_averaged_by_hypothesis_and_their_noise_is_measured() -> None:
    values = torch.randn(6, 2, 400, generator=torch.Generator().manual_seed(0))
    seen = Observed({"a": values}, [[[0, 2, 4], [1]], [[1, 3, 5], [0]]])
    assert torch.allclose(seen.channels("a", slice(0, 2))[0], values[[0, 2, 4]].double().mean(0))
    assert torch.equal(seen.channels("a of hypothesis 2", slice(0, 2)), values[[1, 0]])
    expected = torch.stack([values[[0, 2, 4]].var(0), values[[1, 3, 5]].var(0)]).mean((0, 2)) / 3
    assert torch.allclose(seen.noise("a", spread=True), expected.double(), rtol=1e-5)
    assert seen.noise("a of hypothesis 2", spread=True).tolist() == [0.0, 0.0]
    assert seen.noise("a", spread=False).tolist() == [0.0, 0.0]
