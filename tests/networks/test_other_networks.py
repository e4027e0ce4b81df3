"""LightCNN, PFLD and the U-Net against the reference implementations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppfr.heads import build_head
from ppfr.networks import build_backbone, build_unet, load_checkpoint, load_pfld
from ppfr.util.errors import CheckpointError, MethodError, ShapeError

LIGHT = {
    "lightcnn-29v2": "LightCNN/LightCNN_29Layers_v2(num_classes=300)",
    "lightcnn-29v4": "Privacy-HFR/LightCNN_V4(num_classes=300)",
}
PFLD = "TFace/PFLDInference"


@pytest.mark.parametrize("name", LIGHT)
def test_lightcnn_golden(name: str, reference: Any, save: Callable[..., Path]) -> None:
    peer = LIGHT[name]
    state = reference.state(peer)
    checkpoint = load_checkpoint(save({"state_dict": {f"module.{k}": v for k, v in state.items()}}))
    backbone = checkpoint.backbone
    assert (backbone.name, backbone.input_size, backbone.embedding_size) == (name, (128, 128), 256)
    ours = [(key, tuple(value.shape)) for key, value in backbone.state_dict().items()]
    assert ours == [(key, shape) for key, shape in reference.shapes(peer) if not key.startswith("fc2.")]
    assert {key.rpartition("module.")[2] for key in checkpoint.dropped} == {k for k in state if "fc2" in k}
    with torch.no_grad():
        image = reference.arrays["gray128"] if name.endswith("v2") else reference.image("image128")
        feature = backbone(image)
        reference.check(f"{peer}/feature", feature)
        if "fc2.bias" in state:  # the classifier of the checkpoint is our softmax head
            head = build_head("softmax", embedding_size=256, classes=300)
            head.load_state_dict({"kernel": state["fc2.weight"].T, "bias": state["fc2.bias"]})
            reference.check(f"{peer}/logits", head(feature, torch.zeros(1, dtype=torch.int64)))


def test_lightcnn_defaults_and_sizes() -> None:
    backbone = build_backbone("lightcnn-29v2", width=0.25)
    assert (backbone.in_channels, backbone.embedding_size, backbone.input_size) == (1, 256, (128, 128))
    with pytest.raises(MethodError, match=r"input_size is \(128, 100\); lightcnn-29v4 needs multiples of 16"):
        build_backbone("lightcnn-29v4", input_size=(128, 100))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"plfd_backbone": s, "auxiliarynet": {}}])
def test_pfld_golden(wrap: Callable[[Any], Any], reference: Any, save: Callable[..., Path]) -> None:
    network = load_pfld(save(wrap(reference.state(PFLD))))
    assert [(k, tuple(v.shape)) for k, v in network.state_dict().items()] == reference.shapes(PFLD)
    assert sum(p.numel() for p in network.parameters()) == reference.networks[PFLD]["parameters"]
    with torch.no_grad():
        landmarks = network(reference.image("image"))
    assert landmarks.shape == (1, 98, 2)
    reference.check(f"{PFLD}/landmarks", landmarks)
    with pytest.raises(ShapeError, match=r"images have shape \(1, 3, 96, 96\); PFLD expects \(B, 3, 112, 112\)"):
        network(torch.zeros(1, 3, 96, 96))


def test_pfld_refuses_other_weights(save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"weights\.pth does not fit PFLD; nothing was loaded"):
        load_pfld(save(build_backbone("mobilefacenet", width=0.125).state_dict()))


@pytest.mark.parametrize("channels", [192, 3])
def test_unet_has_the_names_and_shapes_of_the_reference(channels: int, shared: Path) -> None:
    peer = json.loads((shared / "golden" / "minusface_models.json").read_text())[f"UNet({channels},{channels})"]
    network = build_unet(in_channels=channels, out_channels=channels)
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == peer["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == peer["parameters"]


def test_unet_levels(generator: torch.Generator) -> None:
    network = build_unet(in_channels=6, out_channels=5, width=0.125)
    images = torch.rand(2, 6, 48, 32, generator=generator)
    features = network.encode(images)
    assert [tuple(f.shape[1:]) for f in features] == [
        (8, 48, 32),
        (16, 24, 16),
        (32, 12, 8),
        (64, 6, 4),
        (128, 3, 2),
    ]
    output = network(images)
    assert output.shape == (2, 5, 48, 32)
    for level in range(5):  # every skip and the latent have their say
        changed = [f + 1 if index == level else f for index, f in enumerate(features)]
        assert not torch.equal(network.decode(changed), output)
    with pytest.raises(ShapeError, match=r"expected \(B, 6, H, W\) with H and W multiples of 16"):
        network(images[..., :30])
    again = build_unet(in_channels=6, out_channels=5, width=0.125)
    assert torch.equal(again(images), output)
