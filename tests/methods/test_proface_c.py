"""PRO-Face C: golden client and trunk, the shuffle as a secret, settings of the payload, what learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.methods.proface_c import MAPS
from ppfr.networks import load_checkpoint
from ppfr.networks.mobilefacenet import MobileFaceNet
from ppfr.transforms.blur import gaussian_blur
from ppfr.transforms.shuffle import shuffle_blocks
from ppfr.util.errors import CheckpointError, MethodError
from support.reference import Reference, rule, rule_values

PEER = "PRO-Face-C/ClientBackbone(112,512)"


def proface(seed: int = 0, **options: Any) -> Method:
    method = ppfr.create("proface-c", "mobilefacenet", seed, width=0.25, embedding_size=32, **options)
    generator = drawn(11)
    for interface in method.client.interfaces:  # training moves them from zero
        torch.nn.init.normal_(interface.weight, std=0.1, generator=generator)
    return method


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    levels = torch.randint(0, 256, (2, 3, 14, 14), generator=drawn(5)).float()
    return torch.nn.functional.interpolate(levels, (112, 112), mode="bilinear").round() / 127.5 - 1


# --- the reference -------------------------------------------------------------------------------------------------


def test_client_and_trunk_give_the_recorded_values(golden: Callable[[str], Any], shared: Path, tmp_path: Path) -> None:
    known = golden("proface_client.npz")
    reference = Reference(shared / "golden")
    state = {key: rule_values(key, shape, 1.0) for key, shape in reference.shapes(PEER)}
    torch.save({key: value for key, value in state.items() if key != "channel_permutations"}, tmp_path / "client.pth")
    clear = torch.from_numpy(known["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    blurred = gaussian_blur(clear)
    client = load_checkpoint(tmp_path / "client.pth").backbone
    assert isinstance(client, MobileFaceNet)
    client.eval()

    method = ppfr.create("proface-c", "ir101", embedding_size=512)
    trunk = {key: rule_values(key, shape, 1.0) for key, shape in reference.shapes("AdaFace/ir_101")}
    torch.save(trunk, tmp_path / "trunk.pth")
    method.server.backbone.load_state_dict(load_checkpoint(tmp_path / "trunk.pth").backbone.state_dict())
    method.client.backbone.load_state_dict(client.state_dict(), strict=False)
    for index, (interface, gain) in enumerate(zip(method.client.interfaces, method.server.gains, strict=True), 1):
        interface.weight.data = state[f"interface_{index}.1.weight"]
        interface.bias.data = state[f"interface_{index}.1.bias"]
        values = 1 + 0.5 * rule(f"weight{index}", gain.numel()).reshape(gain.shape)
        gain.data = torch.from_numpy(values).float()
    method.set_secrets({"permutations": torch.from_numpy(known["permutations"][:4]).long()})
    with torch.no_grad():
        near(client(clear - blurred), known["client_embedding"])
        maps = method.client(clear - blurred)
        embedding = method.server.compensate(blurred, maps)
        silent = method.server.compensate(blurred, [torch.zeros_like(values) for values in maps])
    for index, values in enumerate(maps, 1):
        near(values[tuple(torch.from_numpy(known[f"aux{index}_pos"]).long().T)], known[f"aux{index}"])
    near(torch.nn.functional.normalize(embedding), known["embedding"])
    near(embedding.norm(dim=1, keepdim=True), known["norm"])
    near(torch.nn.functional.normalize(silent), known["embedding_without_features"])


def apart(first: Tensor, second: Tensor) -> float:
    """Distance relative to the second's length."""
    return float((first - second).norm() / second.norm())


def near(values: Tensor, known: Any) -> None:
    """The recorded tolerance: the largest difference is at most 1e-4 of the largest value."""
    expected = torch.from_numpy(known)
    assert (values - expected).abs().max() <= 1e-4 * expected.abs().max()


# --- what it promises ----------------------------------------------------------------------------------------------


def test_an_untrained_method_is_the_recogniser_on_blurred_images(images: Tensor) -> None:
    """Maps begin at zero, so compensation can only add to what the recogniser makes of the blurred image."""
    method = ppfr.create("proface-c", "mobilefacenet", width=0.25, embedding_size=32)
    payload = method.protect(images, drawn())
    blurred = payload["image"].float() / 127.5 - 1
    assert torch.allclose(method.embed(payload), method.server.backbone(blurred), atol=1e-6)


def test_the_payload_of_an_ir_trunk_keeps_its_bound() -> None:
    method = ppfr.create("proface-c", "ir18", embedding_size=32)
    assert method.schema.nbytes <= 420_000
    assert [method.schema.tensors[name].shape for name in MAPS] == [
        (64, 56, 56),
        (128, 28, 28),
        (256, 14, 14),
        (512, 7, 7),
    ]


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_bits_and_pruning_change_after_training(bits: int, images: Tensor) -> None:
    method = proface()
    changed = method.with_options(bits=bits, pruning=0.9)
    before, after = method.protect(images, drawn()), changed.protect(images, drawn())
    assert torch.equal(before["image"], after["image"])
    for name in MAPS:
        assert int(after[name].abs().max()) <= 2 ** (bits - 1) - 1
        assert (after[name] == 0).float().mean() >= 0.89
    assert after.sent_nbytes < before.sent_nbytes
    assert torch.equal(changed.secrets()["permutations"], method.secrets()["permutations"])


def test_without_maps_embeddings_are_those_of_the_blurred_image(images: Tensor) -> None:
    method = proface()
    silent = method.with_options(pruning=1.0)
    payload = silent.protect(images, drawn())
    assert all(int(payload[name].abs().max()) == 0 for name in MAPS)
    blurred = payload["image"].float() / 127.5 - 1
    alone = method.server.backbone(blurred)
    assert apart(silent.embed(payload), alone) < 1e-4
    assert apart(method.embed(method.protect(images, drawn())), alone) > 1e-2


def test_what_training_decides_cannot_change_afterwards() -> None:
    with pytest.raises(MethodError, match=r"blocks cannot change after training; what can: bits, pruning"):
        proface().with_options(blocks=4)
    with pytest.raises(MethodError, match="bits: Input should be 8, 6, 4 or 2"):
        proface().with_options(bits=5)


def test_the_shuffle_is_a_secret_of_the_client(images: Tensor, tmp_path: Path) -> None:
    method = proface(shuffle_seed=7)
    other = proface(shuffle_seed=8)
    assert not torch.equal(method.protect(images, drawn())["map0"], other.protect(images, drawn())["map0"])
    ppfr.save(method, tmp_path)
    assert not [name for name in load_file(tmp_path / MODEL_FILE) if "permutation" in name]
    assert ppfr.load(tmp_path).secrets()["permutations"].equal(method.secrets()["permutations"])
    (tmp_path / "secrets.safetensors").unlink()
    server = ppfr.load(tmp_path)
    payload = method.protect(images, drawn())
    assert torch.equal(server.embed(payload), method.embed(payload))
    with pytest.raises(MethodError, match=r"secrets \(permutations\) are absent"):
        server.protect(images)


def test_another_clients_secrets_are_refused() -> None:
    method = proface()
    with pytest.raises(MethodError, match=r"needs the secrets {'permutations': \(4, 16\)}; got"):
        method.set_secrets({"permutations": torch.zeros(9, 16, dtype=torch.long)})
    with pytest.raises(MethodError, match=r"must hold each of 0\.\.15 once in every row"):
        method.set_secrets({"permutations": torch.zeros(4, 16, dtype=torch.long)})


def test_only_client_and_gains_learn(images: Tensor) -> None:
    method = proface()
    stage = method.stages()[1]
    learning = {id(parameter) for parameter in stage.module.parameters()}
    assert not learning & {id(parameter) for parameter in method.server.backbone.parameters()}
    step = stage.forward(images, torch.tensor([0, 1]), drawn())
    (step.losses["similarity"] + step.embedding.sum()).backward()
    assert all(gain.grad is not None and gain.grad.abs().sum() > 0 for gain in method.server.gains)
    assert all(interface.weight.grad.abs().sum() > 0 for interface in method.client.interfaces)


@pytest.mark.parametrize("simulate", ["settings", "any"])
def test_training_can_simulate_the_transmission(simulate: str, images: Tensor) -> None:
    plain = proface().stages()[1].forward(images, torch.tensor([0, 1]), drawn()).embedding
    coarse = proface(simulate=simulate, bits=2, pruning=0.9).stages()[1].forward(images, torch.tensor([0, 1]), drawn())
    assert apart(coarse.embedding, plain) > 1e-3
    coarse.embedding.sum().backward()


@pytest.mark.parametrize("obfuscation", ["gaussian", "median", "pixelate"])
def test_plain_obfuscations_are_the_same_every_time(obfuscation: str, images: Tensor) -> None:
    method = proface(obfuscation=obfuscation)
    first, second = method.protect(images, drawn(0)), method.protect(images, drawn(1))
    assert all(torch.equal(first[name], second[name]) for name in first.tensors)


def test_shuffled_blocks_match_the_first_map(images: Tensor) -> None:
    method = proface()
    straight = torch.arange(16).repeat(4, 1)
    own = method.secrets()["permutations"]
    residual = images - gaussian_blur(images)
    shuffled = method.client(residual)[0]
    method.set_secrets({"permutations": straight})
    assert torch.allclose(shuffled, shuffle_blocks(method.client(residual)[0], own))


def test_settings_are_checked() -> None:
    with pytest.raises(MethodError, match=r"first map of 56x56 does not divide into 3x3 equal blocks"):
        proface(blocks=3)
    with pytest.raises(MethodError, match=r"client_backbone is 'ir18'; expected a MobileFaceNet"):
        proface(client_backbone="ir18")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    ppfr.save(proface(), tmp_path)
    with pytest.raises(CheckpointError, match="expected 'minusface'"):
        load_method(tmp_path, expect="minusface")
