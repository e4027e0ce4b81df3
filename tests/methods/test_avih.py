"""AVIH: its loss terms against slow oracles, what the key holder gets back, and where the key may lie."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.avih import EvenVariance, KeyRecovery, under_noise
from ppfr.util.errors import MethodError, PayloadError


def small(**options: object) -> Method:
    settings = {"iterations": 3, "key_width": 0.125, **options}
    return ppfr.create("avih", "mobilefacenet", width=0.25, embedding_size=32, **settings)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand((2, 3, 7, 7), generator=drawn(5)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=112, mode="bilinear")


def test_recovery_is_the_keys_error() -> None:
    images, patterns = (torch.rand((4, 3, 8, 8), generator=drawn(seed)) for seed in (1, 2))
    judged = KeyRecovery(lambda x: x * 0.5, images, 0.2)(patterns[:2], torch.tensor([3, 1]))
    for row, image in enumerate((3, 1)):
        wanted = 0.2 * sum(
            (0.5 * a - b) ** 2
            for a, b in zip(patterns[row].flatten().tolist(), images[image].flatten().tolist(), strict=True)
        )
        assert float(judged.loss[row]) == pytest.approx(wanted / 192, rel=1e-4)


def test_even_variance_is_what_noise_has() -> None:
    noise = torch.rand((1, 1, 64, 64), generator=drawn(1))
    halves = noise.clone()
    halves[..., 32:] = 0.5
    term = EvenVariance(0.3)
    even, uneven = (float(term(pattern, torch.tensor([0])).loss) for pattern in (noise, halves))
    assert even < 0.02 < uneven
    # half of the blocks have twice the mean variance, half none: the squared deviation is 1
    assert uneven == pytest.approx(0.3, abs=0.03)


def test_updates_bring_the_embedding_near(images: Tensor) -> None:
    # the recovery of a key that has learned nothing would drown the rest
    method = small(iterations=10, recovery_weight=0, variance_weight=0)
    books = method.find_images(images, drawn(1))
    first = method.with_options(iterations=1).find_images(images, drawn(1))
    assert bool((books.loss < 0.8 * first.loss).all())
    payload = method.protect(images, drawn(1))
    assert torch.equal(payload["image"], books.pattern)
    with torch.no_grad():
        sent, clear = method.embed(payload), method.server.backbone(images)
    assert torch.allclose(torch.cosine_similarity(sent, clear), books.cosine, atol=1e-3)


def test_the_key_recovers_what_another_does_not(images: Tensor) -> None:
    method, stranger = small(iterations=30, recovery_weight=20.0), small()
    key, faces = method.client.key, (images + 1) / 2
    optimizer = torch.optim.Adam(key.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        (key(under_noise(faces, drawn(step))) - faces).abs().mean().backward()
        optimizer.step()
    payload = method.protect(images, drawn(1))
    shuffled = {name: tensor.flip(0) for name, tensor in method.secrets().items()}
    stranger.set_secrets(shuffled)

    def error(found: Tensor) -> float:
        return float((found - faces).square().mean())

    flat = error(faces.mean(dim=(2, 3), keepdim=True))
    recovered = error(method.recover(payload))
    assert recovered < 0.9 * flat
    assert recovered < 0.85 * error(stranger.recover(payload))
    # what travels does not show it
    assert error(payload["image"]) > flat


def test_the_key_lies_with_the_secrets_alone(images: Tensor, tmp_path) -> None:
    method = small()
    ppfr.save(method, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as stream:
        names = set(stream.keys())
    assert names and not [name for name in names if "key" in name]
    payload = method.protect(images, drawn())
    assert torch.equal(ppfr.load(tmp_path).recover(payload), method.recover(payload))
    (tmp_path / "secrets.safetensors").unlink()
    server = ppfr.load(tmp_path)
    assert torch.equal(server.embed(payload), method.embed(payload))
    for asked in (lambda: server.protect(images), lambda: server.recover(payload)):
        with pytest.raises(MethodError, match=r"secrets \(key\) are absent"):
            asked()


def test_foreign_keys_and_payloads_are_refused(images: Tensor) -> None:
    method = small()
    with pytest.raises(MethodError, match=r"tensors of a key network of width 0\.125; missing .*left_conv_1"):
        method.set_secrets({})
    with pytest.raises(MethodError, match="of another shape"):
        method.set_secrets(small(key_width=0.25).secrets())
    foreign = ppfr.create("arcface", "mobilefacenet", width=0.25).protect(images)
    with pytest.raises(PayloadError, match=r"missing tensors \['image'\]"):
        method.recover(foreign)


def test_it_works_in_inference_mode(images: Tensor) -> None:
    with torch.inference_mode():
        inside = small().protect(images.clone(), drawn(2))["image"]
    assert torch.equal(inside, small().protect(images, drawn(2))["image"])
