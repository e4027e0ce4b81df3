"""Backbones against the reference implementations, and the interface that methods build on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ppfr.networks import Backbone, backbone_names, build_backbone
from ppfr.networks.checkpoints import load_state
from ppfr.networks.inference import folded, reading_channel
from ppfr.networks.layouts import find_layout, infer_backbone
from ppfr.networks.mobilefacenet import CLIENT_BLOCKS
from ppfr.transforms import block_dct
from ppfr.util.errors import MethodError, ShapeError

PEERS = {
    "TFace/IR_18": "ir18",
    "TFace/IR_50": "ir50",
    "TFace/IR_101": "ir101",
    "TFace/IR_SE_50": "ir-se50",
    "TFace/MobileFaceNet": "mobilefacenet",
    "TFace/duetface/ClientBackbone(30,512)": "mobilefacenet-client",
}
CLIENT_FREQUENCIES = [0, 1, 2, 3, 4, 5, 8, 9, 16, 24]
SERVER_FREQUENCIES = [f for f in range(64) if f not in CLIENT_FREQUENCIES]


def tiny(name: str, **options: Any) -> Backbone:
    return build_backbone(name, width=0.125, embedding_size=32, **options).eval()


def fill(state: dict[str, Tensor]) -> Backbone:
    """Load a peer's state_dict as `load_checkpoint` does, without the detour over a file."""
    state = {key.removeprefix("client_backbone."): value for key, value in state.items()}
    state = find_layout(state, "golden").convert(state)
    backbone = infer_backbone(state, "golden")
    load_state(backbone, state, "golden")
    return backbone.eval()


@pytest.mark.parametrize("peer", PEERS)
def test_golden(peer: str, reference: Any) -> None:
    backbone = fill(reference.state(peer))
    assert backbone.name == PEERS[peer]
    assert sum(p.numel() for p in backbone.parameters()) == reference.networks[peer]["parameters"]
    if "Client" in peer:  # its own names differ, not its shapes or their order
        assert [tuple(v.shape) for v in backbone.state_dict().values()] == [
            shape for _, shape in reference.shapes(peer)
        ]
        image = block_dct(reference.image("image"), CLIENT_FREQUENCIES).flatten(1, 2) / 255
    else:
        assert [(k, tuple(v.shape)) for k, v in backbone.state_dict().items()] == reference.shapes(peer)
        image = reference.image("image")
    with torch.no_grad():
        embedding = backbone(image)
        reference.check(f"{peer}/embedding", embedding)
        if peer in ("TFace/IR_50", "TFace/IR_101"):  # AdaFace's networks, which also normalise
            adaface = peer.replace("TFace/IR", "AdaFace/ir")
            assert reference.shapes(adaface) == reference.shapes(peer)
            reference.check(f"{adaface}/norm", embedding.norm())
            reference.check(f"{adaface}/embedding", embedding / embedding.norm())


def test_features_replaced_after_every_stage(reference: Any) -> None:
    """The server of DuetFace with closed gates: after each stage the sigmoid of the features goes on."""
    peer = "TFace/duetface/DuetFaceModel IR_18 gates 0"
    state = reference.state(peer)
    server = fill(
        {
            key.removeprefix("server_model."): value
            for key, value in state.items()
            if key.startswith("server_model.") and "embedding_layer" not in key
        }
    )
    image = block_dct(reference.image("image"), SERVER_FREQUENCIES).flatten(1, 2) / 255
    with torch.no_grad():
        reference.check(f"{peer}/embedding", server(image, after_stage=lambda stage, x: x.sigmoid()))


@pytest.mark.parametrize("name", backbone_names())
def test_stages_have_the_shapes_they_state(name: str, generator: torch.Generator) -> None:
    backbone = tiny(name, in_channels=5, input_size=(48, 32))
    images = torch.rand(2, 5, *backbone.input_size, generator=generator)
    seen: dict[int, tuple[int, ...]] = {}

    def remember(stage: int, features: Tensor) -> Tensor:
        seen[stage] = tuple(features.shape[1:])
        return features

    embeddings = backbone(images, after_stage=remember)
    assert embeddings.shape == (2, 32)
    assert tuple(seen[stage] for stage in range(4)) == backbone.stage_shapes()
    torch.testing.assert_close(backbone(images), embeddings)
    assert backbone.first_layer.in_channels == 5


@pytest.mark.parametrize("name", ["ir18", "mobilefacenet"])
def test_block_features_are_those_of_the_forward_pass(name: str, generator: torch.Generator) -> None:
    backbone = tiny(name)
    images = torch.rand(2, 3, 112, 112, generator=generator)
    every = backbone.block_features(images, range(len(backbone.blocks)))
    assert tuple(tuple(x.shape[1:]) for x in every) == backbone.block_shapes()
    chosen = backbone.block_features(images, {7, 1})
    assert [torch.equal(a, b) for a, b in zip(chosen, (every[1], every[7]), strict=True)] == [True, True]
    torch.testing.assert_close(backbone.output(every[-1]), backbone(images))
    with pytest.raises(ShapeError, match=r"block indices \[1, 8\] asked of .*; expected one or more of 0\.\.7"):
        backbone.block_features(images, [1, 8])


def test_shapes_that_the_papers_state() -> None:
    assert build_backbone("ir18").stage_shapes() == ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
    client = build_backbone("mobilefacenet-client", in_channels=30)
    assert [client.block_shapes()[index] for index in CLIENT_BLOCKS] == [
        (64, 28, 28),
        (128, 14, 14),
        (128, 7, 7),
        (512, 7, 7),
    ]


def test_a_narrow_backbone_reads_the_central_columns(generator: torch.Generator) -> None:
    backbone = tiny("mobilefacenet-96")
    images = torch.rand(2, 3, 112, 112, generator=generator)
    assert torch.equal(backbone(images), backbone(images[..., 8:104]))
    with pytest.raises(
        ShapeError,
        match=r"got input of shape \(2, 3, 112, 100\); expected \(B, 3, 112, 96\) or \(B, 3, 112, 112\)",
    ):
        backbone(images[..., :100])


def test_any_input_size(generator: torch.Generator) -> None:
    backbone = tiny("ir18", input_size=(128, 100))
    images = torch.rand(1, 3, 128, 100, generator=generator)
    assert backbone(images).shape == (1, 32)
    assert backbone.stage_shapes()[3][1:] == (8, 7)


@pytest.mark.parametrize("name", ["ir-se50", "mobilefacenet"])
def test_weights_depend_on_the_generator_alone(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)  # the global state must have no influence
        backbone = tiny(name, generator=torch.Generator().manual_seed(seed))
        return torch.cat([value.flatten().float() for value in backbone.state_dict().values()])

    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    torch.set_rng_state(before)
    build_backbone("mobilefacenet", width=0.125)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["ir-se18", "r18", "mobilefacenet-client"])
def test_folded_networks_compute_the_same(name: str, generator: torch.Generator) -> None:
    backbone = tiny(name)
    for layer in backbone.modules():  # statistics and slopes that a trained network could have
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    images = torch.rand(3, 3, 112, 112, generator=generator) * 2 - 1
    fast = folded(backbone)
    torch.testing.assert_close(fast(images), backbone(images), rtol=1e-3, atol=1e-4)
    norms = [layer for layer in fast.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(norms) < sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in backbone.modules()) / 2


@pytest.mark.parametrize("name", ["ir18", "mobilefacenet", "lightcnn-29v4"])
def test_reading_one_channel_is_reading_zeros_in_the_others(name: str, generator: torch.Generator) -> None:
    backbone = tiny(name).eval()
    image = torch.rand(2, 3, *backbone.input_size, generator=generator)
    alone = torch.zeros_like(image)
    alone[:, 2] = image[:, 2]
    reader = reading_channel(backbone, 2)
    torch.testing.assert_close(reader(image[:, 2:]), backbone(alone), rtol=1e-3, atol=1e-4)
    assert backbone.in_channels == 3
    with pytest.raises(MethodError, match=r"channel 3 of .* \(Conv2d of 3 channels\); expected a plain convolution"):
        reading_channel(backbone, 3)


@pytest.mark.parametrize("name", ["ir18", "mobilefacenet"])
def test_every_parameter_learns(name: str, generator: torch.Generator) -> None:
    backbone = tiny(name).train()
    backbone(torch.rand(4, 3, 112, 112, generator=generator)).square().sum().backward()
    untouched = [key for key, value in backbone.named_parameters() if value.grad is None]
    assert untouched == []


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MethodError, match=r"unknown backbone 'resnet50'; expected one of ir18, ir34"):
        build_backbone("resnet50")
    with pytest.raises(MethodError, match=r"width is 0; expected at least"):
        build_backbone("ir18", width=0)
    with pytest.raises(MethodError, match=r"input_size is 8; expected at least 16"):
        build_backbone("ir18", input_size=(112, 8))
    with pytest.raises(ShapeError, match=r"ir18 got input of shape \(1, 4, 112, 112\); expected \(B, 3, 112, 112\)$"):
        tiny("ir18")(torch.zeros(1, 4, 112, 112))
