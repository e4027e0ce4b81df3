"""Feature extraction: payload maps of any payload, payload clusters, and the linear estimate of the image."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.budget import row_chunks
from ppfr.attacks.learned import features as features_module
from ppfr.attacks.learned.features import FeatureCache
from ppfr.attacks.learned.payload_maps import MOST_CHANNELS, PayloadMaps
from ppfr.attacks.learned.wiener_filter import WienerFilter
from ppfr.attacks.public_data import PublicFaces
from ppfr.attacks.threat import Has, ThreatModel
from ppfr.methods import Method, Payload, PayloadSchema, TensorSpec
from support.toys import SIZE, smooth_images

Toy = Callable[..., Method]


def attacker(target: Method, faces: Tensor | PublicFaces, seed: int = 0, cache: FeatureCache | None = None) -> Attacker:
    threat = ThreatModel(has=frozenset({Has.FACES, Has.QUERIES}))
    public = PublicFaces(faces) if isinstance(faces, Tensor) else faces
    return Attacker(target, threat, faces=public, seed=seed, cache=cache)


def blurred(images: Tensor) -> Tensor:
    """Each channel mixed with its neighbours around a torus, and colours with each other."""
    return images + 0.4 * images.roll(1, 3) + 0.3 * images.roll(1, 2) + 0.2 * images.flip(1)


def wave(frequency: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """A client that shows edges of one direction the more, and turns signs."""
    return lambda images: {
        "channels": torch.cat([images * (frequency + 1), (-1) ** frequency * (images - images.roll(1, 3))], 1)
    }


# --- chunks of rows ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("length", "size"), [(1, 32), (1 << 20, 16), (1 << 24, 1), (1 << 28, 1)])
def test_chunks_hold_every_row_once_and_few_bytes(length: int, size: int) -> None:
    schema = PayloadSchema("toy", {"numbers": TensorSpec((length,), "numbers")})
    found = row_chunks(40, schema)
    assert [row for part in found for row in part] == list(range(40))
    assert max(map(len, found)) == size
    assert max(map(len, row_chunks(40, schema, most=5))) == min(size, 5)


# --- payload maps -----------------------------------------------------------------------------------------------------
def payload_of(**tensors: Tensor) -> Payload:
    specs = {name: TensorSpec(tuple(value.shape[1:]), name, value.dtype) for name, value in tensors.items()}
    return Payload(PayloadSchema("toy", specs), tensors)


def test_maps_and_vectors_have_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    payload = payload_of(
        map=7 + 3 * torch.randn(16, 2, 12, 10, generator=generator),
        grey=torch.randint(0, 255, (16, *SIZE), generator=generator, dtype=torch.uint8),
        dead=torch.ones(16, 1, *SIZE),
        code=torch.randn(16, 5, generator=generator) - 4,
    )
    maps = PayloadMaps(payload, SIZE)
    found, numbers = maps.maps(payload), maps.vectors(payload)
    # one channel more for each tensor of maps
    assert found.shape == (16, (2 + 1) + (1 + 1) + (1 + 1), *SIZE) == (16, maps.channels, *SIZE)
    assert numbers.shape == (16, 5) == (16, maps.length)
    assert torch.allclose(found[:, 3].std(), torch.tensor(1.0), atol=0.01)
    assert float(found[:, 5].abs().max()) == 0
    assert torch.allclose(numbers.std(0, correction=0), torch.ones(5), atol=1e-4)


def test_many_channels_are_reduced_to_their_components_without_loss_where_they_are_mixtures() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(8, 10, *SIZE, generator=generator)
    mixture = torch.randn(150, 10, generator=generator)
    payload = payload_of(many=torch.einsum("mc,bchw->bmhw", mixture, sources))
    maps = PayloadMaps(payload, SIZE)
    assert maps.channels == MOST_CHANNELS + 1
    found = maps.maps(payload)[:, :10].flatten(2).transpose(0, 1).flatten(1)
    wanted = sources.flatten(2).transpose(0, 1).flatten(1)
    mapped = wanted @ torch.linalg.pinv(found) @ found
    assert float((mapped - wanted).square().mean()) < 1e-3


# --- the linear estimate ------------------------------------------------------------------------------------------
def test_the_filter_inverts_what_treats_all_places_alike() -> None:
    images = smooth_images(60, 1)
    clusters = torch.zeros(60, dtype=torch.long)
    filtered = WienerFilter(blurred(images[:50]).half(), clusters[:50], 1, images[:50])
    found = filtered(filtered.normalised(blurred(images[50:]), clusters[50:]), clusters[50:])
    assert float((found - images[50:]).square().mean()) < 0.01 * float(images[50:].square().mean())


def test_each_cluster_has_a_filter_and_an_unseen_one_gives_the_mean_face() -> None:
    images = smooth_images(60, 1)
    clusters = torch.arange(60) % 2
    seen = torch.where((clusters == 0)[:, None, None, None], blurred(images), -images.flip(1))
    filtered = WienerFilter(seen, clusters, 3, images)
    assert float((filtered(filtered.normalised(seen, clusters), clusters) - images).square().mean()) < 0.01
    unknown = torch.full((60,), 2)
    found = filtered(filtered.normalised(seen, unknown), unknown)
    assert torch.allclose(found, images.mean(0).expand_as(found), atol=1e-6)


# --- all of it ----------------------------------------------------------------------------------------------------
def test_clusters_are_those_that_the_client_drew(toy: Toy, faces: Tensor) -> None:
    target = toy(*map(wave, range(3)))
    extractor = attacker(target, faces).features()
    assert "3 payload clusters" in str(extractor)
    probes = smooth_images(24, 7)
    payload = target.protect(probes, torch.Generator().manual_seed(2))
    found = extractor(payload)
    assert found.image.shape == probes.shape
    assert float((found.image - probes).square().mean()) < 0.05 * float(probes.square().mean())


@pytest.mark.parametrize("client", ["the same", "always new"])
def test_a_client_without_draws_or_with_too_many_has_one_cluster(
    toy: Toy, faces: Tensor, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy(lambda images: {"channels": blurred(images)})
    if client == "always new":

        def noisy(images: Tensor, generator: torch.Generator) -> dict[str, Any]:
            return {"channels": blurred(images) + 0.1 * torch.randn(images.shape, generator=generator)}

        monkeypatch.setattr(target, "_protect", noisy)
    assert "1 payload clusters" in str(attacker(target, faces).features())


def test_batches_are_of_the_training_pairs_they_name(toy: Toy, faces: Tensor) -> None:
    target = toy(lambda images: {"channels": blurred(images)})
    extractor = attacker(target, faces).features()
    # three epochs: first the sample it was fitted to, then new payloads
    batches = list(extractor.batches(12, 8, torch.Generator().manual_seed(0)))
    assert [len(rows) for _, rows in batches] == [8] * 12
    for found, rows in batches:
        assert float((found.image - faces[rows]).square().mean()) < 0.05
    assert {int(row) for _, rows in batches for row in rows}.isdisjoint(extractor.held_out)


def test_maps_that_are_held_take_bounded_memory(toy: Toy, faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    target = toy(lambda images: {"channels": blurred(images)})
    each = 2 * 4 * SIZE[0] * SIZE[1]
    monkeypatch.setattr(features_module, "_BYTES", 10 * each)
    found = attacker(target, faces).features()
    assert found._sample.maps.nbytes == 10 * each
    assert len(set(found._sample.rows.tolist())) == 10


def test_attacks_with_one_cache_share_features_until_the_target_changes(toy: Toy, faces: Tensor) -> None:
    target = toy(lambda images: {"channels": blurred(images)})
    target.server = torch.nn.Linear(2, 2)
    public, cache = PublicFaces(faces), FeatureCache()
    one, two = (attacker(target, public, cache=cache) for _ in range(2))
    first = one.features()
    assert two.features() is first
    assert attacker(target, public).features() is not first
    assert attacker(target, public, seed=1, cache=cache).features() is not first
    second = one.features()
    with torch.no_grad():
        target.server.weight.add_(1)
    assert one.features() is not second


def test_features_are_kept_by_target_and_go_with_the_cache(toy: Toy, faces: Tensor) -> None:
    target, cache = toy(lambda images: {"channels": blurred(images)}), FeatureCache()
    public, before = PublicFaces(faces), set(vars(target))
    features = attacker(target, public, cache=cache).features()
    assert attacker(copy.deepcopy(target), public, cache=cache).features() is not features
    assert attacker(target, public, cache=cache).features() is features
    assert set(vars(target)) == before
    method, learned = weakref.ref(target), weakref.ref(features)
    del target, features, cache
    gc.collect()
    assert method() is None and learned() is None


def test_vectors_alone_give_the_mean_face(toy: Toy) -> None:
    faces = smooth_images(64, 2)
    target = toy(lambda images: {"code": F.adaptive_avg_pool2d(images, 3).flatten(1)})
    extractor = attacker(target, faces).features()
    found = extractor(target.protect(faces[:3], torch.Generator()))
    assert found.maps.shape == (3, 0, *SIZE)
    assert found.vector.shape == (3, 27)
    assert torch.allclose(found.image, faces[extractor.learning].mean(0).expand_as(found.image), atol=1e-5)
