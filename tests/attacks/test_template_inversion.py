"""Template inversion: what a template tells of a face comes back, and nothing from one that tells nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.attacks import BUDGETS, Budget, Has, Recovery, Sees, ThreatModel, create_attack, stored_templates
from ppfr.attacks.recovery.template_inversion import coarse_first, filtered
from ppfr.methods import Method
from ppfr.methods.custom import custom_method
from ppfr.networks import Preprocessing
from ppfr.util.errors import AttackError, MethodError
from support.toys import SIZE, smooth_images


class Folds(nn.Module):
    """An embedding of a small image that no linear map can undo: sines of random mixtures."""

    def __init__(self, seed: int, length: int = 48) -> None:
        super().__init__()
        self.mix = nn.Linear(90, length)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.mix.weight, std=1.0, generator=generator)
        nn.init.uniform_(self.mix.bias, -3, 3, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(F.adaptive_avg_pool2d(images, (6, 5)).flatten(1)).sin()


class ToyRecogniser:
    name, sha256 = "toy", "a" * 64
    preprocessing = Preprocessing(size=SIZE)

    def __init__(self, trained: bool = True) -> None:
        self._network = Folds(5)
        self.backbone = self._network if trained else None
        self.embedding_size = 48

    @torch.no_grad()
    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        found: Tensor = self._network(images)
        return found + self._network(images.flip(3)) if flip else found


def server(network: nn.Module) -> Method:
    return custom_method(
        "toy", lambda images, generator: images, embed=lambda sent: network(sent["payload"]), input_size=SIZE
    )


def attack(target: Method, images: Tensor, faces: Tensor | None, **options: Any) -> Recovery:
    given = {name: options.pop(name) for name in ("recogniser", "threat", "budget", "seed") if name in options}
    payload = stored_templates(target, target.protect(images, torch.Generator().manual_seed(1)))
    found: Recovery = create_attack("template-inversion", **options)(target, payload, faces=faces, **given)
    return found


def found_first(found: Recovery, images: Tensor) -> float:
    """How often a recovered image is most like the one behind its template, on a coarse grid."""
    made, clear = ((F.adaptive_avg_pool2d(part, (6, 5))).flatten(1) for part in (found.images * 2 - 1, images))
    hits = torch.cdist(made, clear).argmin(1) == torch.arange(len(images))
    return float(hits.float().mean())


@pytest.fixture
def public() -> Tensor:
    return symmetrical(300, 2)


@pytest.fixture
def probes() -> Tensor:
    return symmetrical(16, 1)


def symmetrical(count: int, seed: int) -> Tensor:
    images = smooth_images(count, seed)
    return (images + images.flip(-1)) / 2


def test_a_linear_template_gives_the_face_back_without_a_recogniser(probes: Tensor, public: Tensor) -> None:
    class Pool(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(images, (6, 5)).flatten(1) + 1

    found = attack(server(Pool()), probes, public)
    assert found_first(found, probes) > 0.95
    assert found.threat == ThreatModel(Sees.TEMPLATES, has=frozenset({Has.FACES, Has.QUERIES}))
    assert found.notes["descent"].startswith("none")


def test_a_recogniser_finds_what_no_linear_map_can(probes: Tensor, public: Tensor) -> None:
    own: Any = ToyRecogniser()
    target = server(Folds(5))
    plain, guided = (
        attack(target, probes, public, recogniser=own, steps=steps, shift=0, smoothness=0.5) for steps in (0, 30)
    )
    assert found_first(guided, probes) > found_first(plain, probes) + 0.2
    assert likeness(own, guided, probes) > 0.95 > 0.8 > likeness(own, plain, probes)
    assert guided.recogniser == own.sha256 and Has.RECOGNISER in guided.threat.has


def likeness(recogniser: Any, found: Recovery, images: Tensor) -> float:
    made, clear = (recogniser.embed(part) for part in (found.images * 2 - 1, images))
    return float(F.cosine_similarity(made, clear).mean())


def test_a_constant_template_gives_the_mean_face_to_everyone(probes: Tensor, public: Tensor) -> None:
    target = custom_method(
        "toy", lambda images, generator: images, embed=lambda sent: torch.ones(len(sent["payload"]), 8), input_size=SIZE
    )
    found = attack(target, probes, public, recogniser=ToyRecogniser(), steps=3)
    assert torch.allclose(found.images, found.images[:1].expand_as(found.images), atol=1e-5)


def test_a_recogniser_without_weights_leaves_the_decoder(probes: Tensor, public: Tensor) -> None:
    without = attack(server(Folds(6)), probes, public, recogniser=ToyRecogniser(trained=False))
    plain = attack(server(Folds(6)), probes, public)
    assert torch.equal(without.images, plain.images)


def test_rows_do_not_depend_on_each_other_and_seeds_repeat(probes: Tensor, public: Tensor) -> None:
    target, own = server(Folds(6)), ToyRecogniser()
    together = attack(target, probes[:9], public, recogniser=own, steps=4, seed=3)
    again = attack(target, probes[:9], public, recogniser=own, steps=4, seed=3)
    alone = attack(target, probes[7:8], public, recogniser=own, steps=4, seed=3)
    assert torch.equal(together.images, again.images)
    assert torch.allclose(together.images[7:8], alone.images, atol=1e-4)


def test_effort_buys_steps(probes: Tensor, public: Tensor) -> None:
    target, own = server(Folds(6)), ToyRecogniser()
    fast, twice = (
        attack(target, probes[:2], public, recogniser=own, steps=3, budget=budget).notes["descent"]
        for budget in (BUDGETS["fast"], Budget("twice", 512, 2.0))
    )
    assert fast == "3 steps, guided by toy" and twice == "6 steps, guided by toy"


def test_a_recogniser_is_used_only_if_granted(probes: Tensor, public: Tensor) -> None:
    threat = ThreatModel(Sees.TEMPLATES, has=frozenset({Has.FACES, Has.QUERIES}))
    with pytest.raises(AttackError, match="needs a public recogniser, which the threat model"):
        attack(server(Folds(6)), probes, public, recogniser=ToyRecogniser(), threat=threat)


def test_a_client_without_a_server_and_an_attacker_without_faces_are_told(probes: Tensor, public: Tensor) -> None:
    client = custom_method("toy", lambda images, generator: images, input_size=SIZE)
    with pytest.raises(MethodError, match="toy has no server"):
        create_attack("template-inversion").prepare(client, faces=public)
    with pytest.raises(AttackError, match="needs public faces"):
        attack(server(Folds(6)), probes, None)


def test_coarse_frequencies_change_most() -> None:
    factors = coarse_first((32, 32), 2.0)
    assert float(factors.square().mean()) == pytest.approx(1, abs=1e-5)
    assert factors[0, 0] == factors.max() and factors[16, 16] == factors.min()
    assert float(factors[0, 8] / factors[0, 16]) == pytest.approx(4, rel=1e-5)
    noise = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(filtered(noise, torch.ones(32, 17)), noise, atol=1e-5)
