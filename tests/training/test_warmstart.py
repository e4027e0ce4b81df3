"""The warm start against its obvious meaning: the student begins where the teacher ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr
from ppfr.data.images import to_tensor
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.methods import Stage, TrainingStep, TrunkInput
from ppfr.methods.partialface import GatedConv2d
from ppfr.networks import Preprocessing, Recogniser, build_backbone
from ppfr.training.warmstart import align_banks, can_warm_start, fit_first_layer, patches_at, warm_start
from ppfr.util.errors import CheckpointError

SMALL = {"width": 0.25, "embedding_size": 32}


def teacher(name: str = "mobilefacenet") -> Recogniser:
    """A random network with lively norms: nothing in it is at its initial value."""
    generator = torch.Generator().manual_seed(3)
    network = build_backbone(name, **SMALL, generator=generator)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return Recogniser(
        name="t",
        sha256="0",
        architecture=name,
        embedding_size=32,
        preprocessing=Preprocessing(std=(128.0,) * 3),
        network=network.eval(),
    )


def faces(count: int) -> Tensor:
    return to_tensor(SyntheticFaces(count, 1, seed=1).images())


def begun(name: str, master: Recogniser, images: Tensor, **options: object) -> ppfr.Method:
    method = ppfr.create(name, "mobilefacenet", **SMALL, **options)
    generator = torch.Generator().manual_seed(0)
    for stage in method.stages():
        if stage.calibrate is not None:
            stage.calibrate(images, generator)
        warm_start(stage, master, images, generator)
        if stage.after_warm_start is not None:
            stage.after_warm_start(images, generator)
    return method.eval()


def agreement(method: ppfr.Method, master: Recogniser, images: Tensor) -> float:
    """Mean cosine between student and teacher, both centred: an untrained student gives about 0."""
    with torch.no_grad():
        student, wanted = method(images, torch.Generator().manual_seed(8)), master.embed(images)
    return float(F.cosine_similarity(student - student.mean(0), wanted - wanted.mean(0)).mean())


def test_an_unprotected_student_becomes_the_teacher() -> None:
    master, images = teacher(), faces(40)
    assert agreement(begun("arcface", master, images), master, faces(6)) > 0.999


def test_a_first_layer_with_a_bias_takes_the_offset() -> None:
    """LightCNN has no norm to put it into; the same image in another range needs another offset."""
    master = teacher("lightcnn-29v4")
    master.preprocessing = replace(master.preprocessing, size=(128, 128))
    images = F.interpolate(faces(16), (128, 128))
    method = ppfr.create("arcface", "lightcnn-29v4", **SMALL)
    (stage,) = method.stages()
    backbone = stage.trunk
    assert backbone is not None

    def darker(batch: Tensor, generator: torch.Generator) -> TrunkInput:
        return TrunkInput(batch / 4 + 3)

    warm_start(replace(stage, trunk_input=darker), master, images, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone(darker(images[:4], torch.Generator()).features)
    # at the border zeros are not what the clear image has
    assert float(F.cosine_similarity(found, master.embed(images[:4])).min()) > 0.95


@pytest.mark.parametrize(("name", "least"), [("arcface-fd", 0.95), ("duetface", 0.15)])
def test_a_protected_student_starts_near_the_teacher(name: str, least: float) -> None:
    master, images = teacher(), faces(40)
    cold = ppfr.create(name, "mobilefacenet", **SMALL)
    warm = begun(name, master, images)
    assert agreement(warm, master, faces(6)) > max(least, agreement(cold, master, faces(6)) + 0.1)


def test_least_squares_finds_an_exact_linear_layer() -> None:
    """A target that is a convolution of the features, plus an offset, is found to rounding."""
    trunk = build_backbone("mobilefacenet", in_channels=4, **SMALL)
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn((trunk.first_layer.out_channels, 4, 3, 3), generator=generator)

    def features(images: Tensor, _: torch.Generator) -> TrunkInput:
        return TrunkInput(torch.cat([images, images[:, :1].square()], dim=1))

    stage = Stage("s", trunk, lambda *_: TrainingStep(torch.zeros(1)), 32, trunk=trunk, trunk_input=features)

    def target(images: Tensor) -> Tensor:
        return F.conv2d(features(images, generator).features, filters, stride=2, padding=1) + 0.7

    images = torch.rand((48, 3, 112, 112), generator=generator) * 2 - 1
    explained, offset = fit_first_layer(stage, target, images, generator, ridge=1e-9)
    assert explained > 0.9999
    assert torch.allclose(trunk.first_layer.weight, filters, atol=2e-2)
    assert torch.allclose(offset, torch.full_like(offset, 0.7), atol=2e-2)


def test_aligned_experts_agree_on_an_image() -> None:
    """After alignment the experts give like features of one image; fresh ones do not."""
    method = ppfr.create("partialface", "mobilefacenet", **SMALL, stem_kernel=3)
    stage = method.stages()[0]
    stem = stage.trunk.first_layer
    assert isinstance(stem, GatedConv2d)
    images, generator = faces(180), torch.Generator().manual_seed(0)
    stage.calibrate(images, generator)

    def spread() -> float:
        one = faces(1).expand(18, -1, -1, -1)
        with torch.no_grad():
            features = stem(method._channels(one, torch.arange(18))).flatten(1)
        features = features - features.mean(1, keepdim=True)
        similarity = F.normalize(features) @ F.normalize(features).T
        return float((similarity.sum() - 18) / (18 * 17))

    fresh = spread()
    align_banks(stage, images, generator)
    assert spread() > fresh + 0.2


def test_a_teacher_of_another_kind_is_refused() -> None:
    method = ppfr.create("arcface", "mobilefacenet", **SMALL)
    other = teacher("ir18")
    assert not can_warm_start(method.stages()[0].trunk, other)
    with pytest.raises(CheckpointError, match=r"its trunk is mobilefacenet .*, the teacher ir18"):
        warm_start(method.stages()[0], other, faces(2), torch.Generator())


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(3, 2, 1, (9, 12)), (5, 1, 2, (7, 6)), (3, 1, 0, (6, 5))]
)
def test_chosen_patches_are_those_of_unfolding_everything(
    kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((3, 4, *size), generator=generator)
    layer = torch.nn.Conv2d(4, 2, kernel, stride, padding)
    everything = F.unfold(features, layer.kernel_size, padding=padding, stride=stride)
    chosen = torch.randperm(everything.shape[2], generator=generator)
    for positions in (chosen, chosen[:3]):
        for given in (features, features.contiguous(memory_format=torch.channels_last)):
            assert torch.equal(patches_at(given, layer, positions), everything[:, :, positions])
