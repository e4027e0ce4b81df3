"""Published checkpoint layouts are told apart and loaded whole; anything else is refused with a reason."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppfr.networks import Backbone, build_backbone, load_checkpoint
from ppfr.networks.checkpoints import MismatchError
from ppfr.networks.weightfile import read_state_dict
from ppfr.util.errors import CheckpointError

State = dict[str, Tensor]
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def original() -> Backbone:
    return randomised(build_backbone("ir18", width=0.125, embedding_size=16))


def randomised(backbone: Backbone) -> Backbone:
    """Give the batch norms values as after training, so that a mixed-up pair of them shows."""
    generator = torch.Generator().manual_seed(5)
    for key, value in backbone.state_dict().items():
        if "running_var" in key or (value.ndim == 1 and key.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.normal_(0, 0.3, generator=generator)
    return backbone.eval()


def images() -> Tensor:
    return torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(3)) * 2 - 1


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


HEAD = {"kernel": torch.zeros(16, 9), "t": torch.zeros(1)}
LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "bare": (lambda s: s, "TFace"),
    "ddp": (lambda s: prefixed(s, "module."), "TFace"),
    "compiled ddp": (lambda s: prefixed(s, "_orig_mod.module."), "TFace"),
    "wrapped": (lambda s: {"epoch": 3, "net_state_dict": s}, "TFace, under 'net_state_dict'"),
    "adaface": (
        lambda s: {"epoch": 3, "state_dict": prefixed(s, "model.") | prefixed(HEAD, "head.")},
        "AdaFace, under 'state_dict'",
    ),
    "adaface ddp": (
        lambda s: {"state_dict": prefixed(prefixed(s, "model.") | prefixed(HEAD, "head."), "module.")},
        "AdaFace, under 'state_dict'",
    ),
    "cvlface": (lambda s: prefixed(s, "net."), "CVLface"),
    "cvlface from a hub": (lambda s: prefixed(s, "model.net."), "CVLface"),
    "nested": (
        lambda s: {"model": {"state_dict": prefixed(s, "module.backbone.")}, "optimizer": {"lr": 0.1}},
        "TFace, under 'model', under 'state_dict'",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, original: Backbone, save: Save) -> None:
    wrap, name = LAYOUTS[layout]
    checkpoint = load_checkpoint(save(wrap(original.state_dict())))
    assert checkpoint.layout == name
    assert checkpoint.backbone.name == "ir18"
    assert not checkpoint.backbone.training
    assert checkpoint.preprocessing.channel_order == ("bgr" if "adaface" in layout else "rgb")
    heads = {key.split(".")[-1] for key in checkpoint.dropped}
    assert heads == (set(HEAD) if "adaface" in layout else set())
    assert torch.equal(checkpoint.backbone(images()), original(images()))


def test_safetensors(original: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(prefixed(original.state_dict(), "model.net."), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.layout == "CVLface"
    assert torch.equal(checkpoint.backbone(images()), original(images()))


def test_half_precision_and_missing_counters(original: Backbone, save: Save) -> None:
    state = {k: v.half() for k, v in original.state_dict().items() if v.is_floating_point()}
    backbone = load_checkpoint(save(state)).backbone
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    assert F.cosine_similarity(backbone(images()), original(images())).min() > 0.9999


def test_cvlface_states_its_channel_order_beside_the_weights(original: Backbone, save: Save) -> None:
    path = save(prefixed(original.state_dict(), "net."), "model.pt")
    path.with_name("model.yaml").write_text("input_size: [3, 112, 112]\ncolor_space: 'BGR'\n")
    assert load_checkpoint(path).preprocessing.channel_order == "bgr"


@pytest.mark.parametrize("name", ["ir-se34", "ir152", "mobilefacenet", "mobilefacenet-96", "mobilefacenet-client"])
def test_architecture_is_read_from_names_and_shapes(name: str, save: Save) -> None:
    size = (112, 96) if name.endswith("96") else (48, 48)
    options: dict[str, Any] = {"in_channels": 7, "embedding_size": 24, "width": 0.125, "input_size": size}
    backbone = load_checkpoint(save(build_backbone(name, **options).state_dict())).backbone
    assert backbone.name == name
    assert {key: getattr(backbone, key) for key in options} == options


# --- arcface_torch: its forward pass from its own names, as an oracle


def insightface_state(backbone: Backbone, units: tuple[int, ...]) -> State:
    """The weights of an `r*` backbone under arcface_torch's names."""
    layers = {
        "input_layer.0": "conv1",
        "input_layer.1": "bn1",
        "input_layer.2": "prelu",
        "output_layer.0": "bn2",
        "output_layer.3": "fc",
        "output_layer.4": "features",
    }
    block = 0
    for stage, count in enumerate(units, start=1):
        for unit in range(count):
            for index, theirs in enumerate(["bn1", "conv1", "bn2", "prelu", "conv2", "bn3"]):
                layers[f"body.{block}.res_layer.{index}"] = f"layer{stage}.{unit}.{theirs}"
            for index in range(2):
                layers[f"body.{block}.shortcut_layer.{index}"] = f"layer{stage}.{unit}.downsample.{index}"
            block += 1
    return {
        layers[key.rpartition(".")[0]] + "." + key.rpartition(".")[2]: value
        for key, value in backbone.state_dict().items()
    }


def insightface_forward(state: State, units: tuple[int, ...], x: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    x = F.prelu(norm("bn1", conv("conv1", x)), state["prelu.weight"])
    for stage, count in enumerate(units, start=1):
        for unit in range(count):
            name, stride = f"layer{stage}.{unit}", 1 if unit else 2
            y = norm(f"{name}.bn2", conv(f"{name}.conv1", norm(f"{name}.bn1", x)))
            y = conv(f"{name}.conv2", F.prelu(y, state[f"{name}.prelu.weight"]), stride)
            if unit == 0:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = norm(f"{name}.bn3", y) + x
    x = F.linear(norm("bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return norm("features", x)


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"epoch": 1, "state_dict_backbone": prefixed(s, "module.")}],
    ids=["backbone.pth", "checkpoint_gpu_0.pt"],
)
@pytest.mark.parametrize(("name", "units"), [("r18", (2, 2, 2, 2)), ("r50", (3, 4, 14, 3))])
def test_arcface_torch(name: str, units: tuple[int, ...], wrap: Callable[[State], Any], save: Save) -> None:
    state = insightface_state(randomised(build_backbone(name, width=0.125, embedding_size=16)), units)
    checkpoint = load_checkpoint(save(wrap(state)))
    assert checkpoint.layout.startswith("arcface_torch")
    assert checkpoint.backbone.name == name
    assert checkpoint.preprocessing.channel_order == "rgb"
    torch.testing.assert_close(
        checkpoint.backbone(images()), insightface_forward(state, units, images()), rtol=1e-4, atol=1e-4
    )


# --- the real and the recorded ones


def test_teacher(shared: Path) -> None:
    checkpoint = load_checkpoint(shared / "models" / "mobilefacenet_casia_068.ckpt")
    assert checkpoint.layout == "MobileFaceNet_Pytorch, under 'net_state_dict'"
    assert checkpoint.backbone.name == "mobilefacenet-96"
    assert checkpoint.backbone.stage_shapes() == ((64, 56, 48), (64, 28, 24), (128, 14, 12), (128, 7, 6))
    assert str(checkpoint.preprocessing) == ("RGB 112x96, (pixel - 127.5) / 128 (MobileFaceNet_Pytorch convention)")
    assert checkpoint.dropped == ()
    assert checkpoint.sha256.startswith("e839247cdbdf")


@pytest.mark.parametrize(
    ("peer", "array"),
    [
        ("TFace/duetface/ClientBackbone(30,512)", None),
        ("PRO-Face-C/ClientBackbone(112,512)", "channel_permutations"),
    ],
)
def test_client_networks(peer: str, array: str | None, reference: Any, save: Save) -> None:
    state = {key: torch.zeros(shape) for key, shape in reference.shapes(peer)}
    checkpoint = load_checkpoint(save(state))
    assert checkpoint.backbone.name == "mobilefacenet-client"
    assert checkpoint.backbone.in_channels == (3 if array else 30)
    assert len(checkpoint.dropped) == (13 if array else 0)
    assert array is None or array in checkpoint.dropped


# --- refusals


def test_every_misfit_is_reported_at_once(original: Backbone, save: Save) -> None:
    state = dict(original.state_dict())
    del state["body.3.res_layer.1.weight"], state["output_layer.4.running_var"]
    state["body.0.extra.weight"] = torch.zeros(3)
    state["body.5.res_layer.4.weight"] = torch.zeros(32, 32, 1, 1)
    state["input_layer.1.bias"] = torch.full((8,), torch.nan)
    with pytest.raises(MismatchError) as caught:
        load_checkpoint(save(state, "broken.pth"))
    assert caught.value.missing == ["output_layer.4.running_var", "body.3.res_layer.1.weight"]
    assert caught.value.unexpected == ["body.0.extra.weight"]
    assert caught.value.misshaped == ["body.5.res_layer.4.weight is (32, 32, 1, 1), expected (32, 32, 3, 3)"]
    assert caught.value.not_finite == ["input_layer.1.bias"]
    assert str(caught.value).splitlines() == [
        "broken.pth (TFace naming) does not fit ir18; nothing was loaded",
        "  missing (2): output_layer.4.running_var, body.3.res_layer.1.weight",
        "  unexpected (1): body.0.extra.weight",
        "  mis-shaped (1): body.5.res_layer.4.weight is (32, 32, 1, 1), expected (32, 32, 3, 3)",
        "  not finite (1): input_layer.1.bias",
    ]


def test_a_long_list_of_misfits_is_cut_in_the_message_only(original: Backbone, save: Save) -> None:
    state = {key: value for key, value in original.state_dict().items() if "output_layer" not in key}
    state |= {f"body.0.other.{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(MismatchError, match=r"unexpected \(20\): body\.0\.other\.0, .* and 12 more") as caught:
        load_checkpoint(save(state))
    assert len(caught.value.unexpected) == 20


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(zipped: bool, original: Backbone, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "was-run"
    content = {"state_dict": original.state_dict(), "callbacks": Hostile(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth (?:(?!weights_only).)*Save its state_dict alone"):
        load_checkpoint(path)
    assert not marker.exists()


def test_bookkeeping_of_lightning_is_passed_over(original: Backbone, save: Save, monkeypatch: Any) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    bookkeeping: Any = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = bookkeeping  # type: ignore[attr-defined]
    with monkeypatch.context() as installed:
        installed.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        installed.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("callbacks"))
        installed.setitem(sys.modules, module.__name__, module)
        instance = bookkeeping()
        instance.best_model_score = 0.9
        path = save(
            {
                "callbacks": {bookkeeping: {"monitor": "val"}, "last": instance},
                "state_dict": prefixed(original.state_dict(), "model."),
            },
            "adaface.ckpt",
        )
    assert "pytorch_lightning" not in sys.modules
    checkpoint = load_checkpoint(path)
    assert checkpoint.layout == "AdaFace, under 'state_dict'"
    assert torch.equal(checkpoint.backbone(images()), original(images()))


def test_files_that_are_no_checkpoints(tmp_path: Path, save: Save, original: Backbone) -> None:
    def refuse(path: Path, reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(path)

    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    whole = save(original.state_dict()).read_bytes()
    refuse(tmp_path / "none.pth", r"none\.pth' does not exist")
    refuse(tmp_path, r"is a folder")
    refuse(written("empty.pth", b""), r"empty\.pth is not a readable PyTorch file")
    refuse(written("noise.pth", bytes(range(256)) * 9), r"noise\.pth ")
    refuse(written("short.pth", whole[: len(whole) // 2]), r"short\.pth is not a readable PyTorch file")
    refuse(written("plain.pth", pickle.dumps([1, 2], protocol=2)), r"plain\.pth ")
    refuse(written("noise.safetensors", b"\xff" * 64), r"noise\.safetensors is not a readable safetensors file")
    refuse(save([1, 2]), r"holds no tensors where a state_dict is expected \(list\)")
    refuse(save({"epoch": 3, "args": {}}), r"holds no tensors .* \(keys epoch, args\); expected one at the top")
    refuse(save({"state_dict": {}}), r"holds no tensors")
    refuse(save(prefixed(HEAD, "head.")), r"holds no backbone that ppfr knows; .*its 0 keys")
    refuse(
        save({"layers.0.weight": torch.zeros(2)}),
        r"expected the names of TFace, .*begin with layers\.0\.weight",
    )
    shallow = {key: value for key, value in original.state_dict().items() if not key.startswith("body.7.")}
    refuse(save(shallow), r"holds an IResNet of 7 units, which ppfr does not build: it has ir18 \(8\)")


def test_torchscript_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scripted/constants.pkl", b"")
        archive.writestr("scripted/code/__torch__.py", b"")
    with pytest.raises(CheckpointError, match=r"scripted\.pt is a TorchScript program, which can run code"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_weight_files_are_refused_or_fit(kind: str, tmp_path: Path) -> None:
    """Cut anywhere, or with bits flipped: no other error, no other numbers where there are checksums."""
    state = {"fc.weight": torch.arange(40.0).reshape(8, 5), "fc.bias": torch.arange(8.0)}
    path = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()

    @given(
        cut=st.one_of(st.just(0), st.integers(0, len(whole) - 1)),
        flips=st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)), max_size=3),
    )
    @settings(max_examples=150, deadline=None)
    def check(cut: int, flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(whole[: len(whole) - cut])
        for place, bit in flips:
            damaged[place % len(damaged)] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found, _ = read_state_dict(path)
        except CheckpointError:
            return
        assert sum(tensor.numel() for tensor in found.values()) < 1000
        if kind == "zip":
            for name in found.keys() & state.keys():
                assert torch.equal(found[name], state[name])

    check()
