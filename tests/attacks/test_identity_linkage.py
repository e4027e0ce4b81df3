"""Identity linkage: whoever can be recognised in a payload is found, and nobody in one that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.attacks import Has, Knows, Linkage, Pairs, ThreatModel, create_attack
from ppfr.attacks.linkage.identity_linkage import mirrored
from ppfr.methods import Method, Payload, PayloadSchema, TensorSpec
from ppfr.networks.base import reset_weights
from ppfr.util.errors import AttackError, MethodError
from support.toys import ToyMethod, smooth_images

Toy = Callable[..., Method]


class SmallBackbone(nn.Module):
    """Reads images of smooth noise: 6x5 pixels of them, mixed."""

    embedding_size = 24

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(90, self.embedding_size)
        reset_weights(self, torch.Generator().manual_seed(9))

    def forward(self, images: Tensor) -> Tensor:
        mixed: Tensor = self.mix(F.adaptive_avg_pool2d(images, (6, 5)).flatten(1))
        return mixed


class SmallRecogniser:
    """A recogniser with weights, or without any that could be trained, as from an ONNX file."""

    name, sha256, embedding_size = "small", "a" * 64, SmallBackbone.embedding_size

    def __init__(self, trainable: bool = True) -> None:
        self._network = SmallBackbone()
        self.backbone = self._network if trainable else None

    @staticmethod
    def preprocessing(images: Tensor) -> Tensor:
        return images

    @torch.no_grad()
    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        found: Tensor = self._network(images)
        return found + self._network(images.flip(3)) if flip else found


class ServedToy(ToyMethod):
    """A toy whose server mixes the numbers of its payload."""

    embedding_size = 32

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["code"][:, :32] @ torch.randn(32, 32, generator=torch.Generator().manual_seed(4))


def gradients(images: Tensor) -> dict[str, Tensor]:
    """Differences of neighbours: no level, but all edges."""
    right, down = images - images.roll(1, 3), images - images.roll(1, 2)
    return {"channels": torch.cat([right, down], 1) + 0.3}


def code(images: Tensor) -> dict[str, Tensor]:
    """Numbers without a place: mixtures of a small image."""
    mixture = torch.randn(90, 64, generator=torch.Generator().manual_seed(3)) / 9
    return {"code": F.adaptive_avg_pool2d(images, (6, 5)).flatten(1) @ mixture}


def link(
    target: Method,
    probes: Tensor,
    faces: Tensor | None,
    *,
    recogniser: Any = "small",
    pairs: Pairs | None = None,
    threat: ThreatModel | None = None,
    progress: Any = None,
    seed: int = 0,
    **options: Any,
) -> Linkage:
    payload = target.protect(probes, torch.Generator().manual_seed(1))
    found: Linkage = create_attack("identity-linkage", **{"server": False, **options})(
        target,
        payload,
        faces=faces,
        recogniser=SmallRecogniser() if recogniser == "small" else recogniser,
        pairs=pairs,
        threat=threat,
        seed=seed,
        progress=progress,
    )
    return found


def found_first(found: Linkage, probes: Tensor) -> float:
    """How often a payload's embedding is nearest to that of the image behind it."""
    clear = F.normalize(SmallRecogniser().embed(probes))
    hits = (F.normalize(found.embeddings) @ clear.T).argmax(1) == torch.arange(len(probes))
    return float(hits.float().mean())


@pytest.fixture
def probes() -> Tensor:
    return smooth_images(20, 5)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("client", [gradients, lambda images: {"pixels": images}])
def test_people_are_found_in_the_payload_of_a_linear_client(
    toy: Toy, probes: Tensor, faces: Tensor, client: Any, trainable: bool
) -> None:
    found = link(toy(client), probes, faces, recogniser=SmallRecogniser(trainable))
    assert found_first(found, probes) >= 0.9
    assert found.recogniser == SmallRecogniser.sha256
    assert found.threat == ThreatModel(has=frozenset({Has.FACES, Has.QUERIES, Has.RECOGNISER}))


def test_a_constant_payload_gives_everybody_one_embedding(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    found = link(toy(lambda images: {"channels": 0 * images + 0.5}), probes, faces)
    assert torch.allclose(found.embeddings, found.embeddings[:1].expand_as(found.embeddings), atol=1e-6)
    assert found_first(found, probes) <= 0.1


def test_draws_of_a_client_are_told_apart(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    def scaled(weights: list[float]) -> Any:
        return lambda images: {"channels": gradients(images)["channels"] * torch.tensor(weights)[:, None, None]}

    target = toy(scaled([1, 1, 1, -3, -3, -3]), scaled([-3, 3, -3, 1, 1, 1]), scaled([9, 1, -9, 1, 3, 1]))
    found = link(target, probes, faces)
    assert "3 payload clusters" in found.notes["learned from"]
    assert found_first(found, probes) >= 0.9


def test_numbers_without_a_place_are_learned_from(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    untrained, trained = (link(toy(code), probes, faces, steps=steps, rate=0.02) for steps in (0, 60))
    assert found_first(untrained, probes) <= 0.1
    assert found_first(trained, probes) >= 0.5


def test_the_servers_own_embeddings_help_who_knows_the_server(probes: Tensor) -> None:
    faces = smooth_images(160, 2)
    blind, server = (link(ServedToy([code]), probes, faces, server=server, steps=0) for server in (False, True))
    assert found_first(blind, probes) <= 0.1
    assert found_first(server, probes) >= 0.5
    assert server.threat.knows is Knows.PARAMETERS
    assert blind.notes["the server's own embedding"] == "not used"
    assert server.notes["the server's own embedding"] in ("75% of the embedding", "100% of the embedding")


def test_a_method_without_a_server_is_linked_by_its_payload(
    toy: Toy, probes: Tensor, faces: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy(gradients)

    def none(tensors: Mapping[str, Tensor]) -> Tensor:
        raise MethodError("toy has no server")

    monkeypatch.setattr(target, "_embed", none)
    found = link(target, probes, faces, server=True)
    assert found.notes["the server's own embedding"] == "none: toy has no server"
    assert found_first(found, probes) >= 0.9


def test_a_mirrored_payload_has_its_maps_flipped_and_its_numbers_kept() -> None:
    tensors = {"map": torch.randn(2, 3, 4, 5), "grey": torch.randn(2, 4, 5), "code": torch.randn(2, 5)}
    specs = {name: TensorSpec(tuple(part.shape[1:]), name) for name, part in tensors.items()}
    found = mirrored(Payload(PayloadSchema("toy", specs), tensors))
    assert torch.equal(found["map"], tensors["map"].flip(3))
    assert torch.equal(found["grey"], tensors["grey"].flip(2))
    assert torch.equal(found["code"], tensors["code"])


def test_pairs_take_the_place_of_faces_and_queries(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    target = toy(gradients)
    pairs = Pairs(target.protect(faces, torch.Generator().manual_seed(8)), faces)
    found = link(target, probes, None, pairs=pairs)
    assert found_first(found, probes) >= 0.9
    assert found.threat.has == {Has.PAIRS, Has.RECOGNISER}
    assert "40 payload/image pairs" in found.notes["learned from"]


def test_the_same_seed_links_alike(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    target = toy(gradients, lambda images: {"channels": -gradients(images)["channels"]})
    first, second, other = (link(target, probes, faces, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.embeddings, second.embeddings)
    assert not torch.equal(first.embeddings, other.embeddings)


def test_the_recogniser_and_the_toys_stay_as_they_were(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    recogniser = SmallRecogniser()
    before, drawn = recogniser.embed(probes), torch.random.get_rng_state()
    link(toy(gradients), probes, faces, recogniser=recogniser)
    assert torch.equal(recogniser.embed(probes), before)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_progress_counts_up(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    link(toy(gradients), probes, faces, steps=5, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert all(done <= total for done, total in seen)


def test_it_needs_a_recogniser_and_what_the_threat_model_grants(toy: Toy, probes: Tensor, faces: Tensor) -> None:
    with pytest.raises(AttackError, match="needs a public recogniser; give one as `recogniser`"):
        link(toy(gradients), probes, faces, recogniser=None)
    granted = ThreatModel(has=frozenset({Has.FACES, Has.QUERIES, Has.RECOGNISER}))
    with pytest.raises(AttackError, match="needs knowledge of the method's public parameters"):
        link(toy(gradients), probes, faces, server=True, threat=granted)
