"""Recognisers from checkpoints and ONNX files: preprocessing, batches, flip test, and real faces."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ppfr.networks import Preprocessing, Recogniser, build_backbone, load_recogniser
from ppfr.util.errors import CheckpointError, ShapeError

SIDE = 32
TEACHER = "mobilefacenet_casia_068.ckpt"
JUDGE = "mobilefacenet_ms1m.onnx"


def images(count: int, side: int = 112) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture
def checkpoint(save: Callable[..., Path]) -> Path:
    return save(build_backbone("mobilefacenet-96", width=0.125, embedding_size=16).state_dict(), "tiny.pth")


# --- ONNX graphs of one linear layer, small enough to check by hand


def write_graph(
    path: Path,
    *,
    batch: int | str,
    nodes_before: int = 0,
    reshape: bool = False,
    element: int = TensorProto.FLOAT,
    channels: int = 3,
    multiply: bool = True,
) -> np.ndarray[Any, Any]:
    """Write input (batch, channels, SIDE, SIDE) -> Flatten or Reshape(1, -1) -> MatMul; return the matrix.

    `nodes_before`: so many (1 or 2) of Sub 0 and Mul 1 come first. The reshape holds for a batch of one only.
    """
    matrix = np.random.default_rng(0).normal(size=(channels * SIDE * SIDE, 5)).astype(np.float32) / 50
    constants = [
        numpy_helper.from_array(matrix, "matrix"),
        numpy_helper.from_array(np.array([1, -1]), "row"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
    ]
    opening = [
        helper.make_node("Sub", ["input", "zero"], ["sub"]),
        helper.make_node("Mul", ["sub", "one"], ["mul"]),
    ][:nodes_before]
    last = ["input", "sub", "mul"][nodes_before]
    flat = (
        helper.make_node("Reshape", [last, "row"], ["flat"])
        if reshape
        else helper.make_node("Flatten", [last], ["flat"])
    )
    last_node = (
        helper.make_node("MatMul", ["flat", "matrix"], ["output"])
        if multiply
        else helper.make_node("Add", ["flat", "zero"], ["output"])
    )
    graph = helper.make_graph(
        [*opening, flat, last_node],
        "tiny",
        [helper.make_tensor_value_info("input", element, [batch, channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 5])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return matrix


@pytest.mark.parametrize(("batch", "reshape"), [("N", False), (1, True), (4, False)])
@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_with_free_and_fixed_batches(batch: int | str, reshape: bool, threads: int, tmp_path: Path) -> None:
    matrix = write_graph(tmp_path / "net.onnx", batch=batch, reshape=reshape)
    recogniser = load_recogniser(tmp_path / "net.onnx")
    torch.set_num_threads(threads)
    assert recogniser.embedding_size == 5
    assert recogniser.backbone is None
    assert recogniser.preprocessing.size == (SIDE, SIDE)
    faces = images(39, SIDE)  # neither a multiple of 4 nor of the internal batch
    expected = faces.flatten(1) @ torch.from_numpy(matrix)
    torch.testing.assert_close(recogniser.embed(faces), expected, atol=1e-4, rtol=0)
    mirrored = expected + faces.flip(-1).flatten(1) @ torch.from_numpy(matrix)
    torch.testing.assert_close(recogniser.embed(faces, flip=True), mirrored, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("nodes", "mean", "source"),
    [
        (0, 127.5, "InsightFace convention, assumed"),
        (1, 127.5, "InsightFace convention, assumed"),
        (2, 0.0, "the graph normalises pixels itself"),
    ],
)
def test_onnx_preprocessing_is_read_from_the_graph(nodes: int, mean: float, source: str, tmp_path: Path) -> None:
    write_graph(tmp_path / "net.onnx", batch=1, nodes_before=nodes)
    preprocessing = load_recogniser(tmp_path / "net.onnx").preprocessing
    assert preprocessing.mean == (mean,) * 3
    assert preprocessing.source == source


def test_given_preprocessing_wins(tmp_path: Path, checkpoint: Path) -> None:
    write_graph(tmp_path / "net.onnx", batch="N")
    recogniser = load_recogniser(tmp_path / "net.onnx", mean=[100, 110, 120], channel_order="bgr")
    assert recogniser.preprocessing == Preprocessing(
        size=(SIDE, SIDE),
        mean=(100, 110, 120),
        channel_order="bgr",
        source="mean, channel_order given; else InsightFace convention, assumed",
    )
    assert load_recogniser(checkpoint, std=[64.0] * 3).preprocessing.std == (64.0,) * 3


def test_onnx_files_that_are_no_recognisers(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(CheckpointError, match=r"net\.onnx' does not exist"):
        load_recogniser(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match=r"net\.onnx is not an ONNX file that onnxruntime can run"):
        load_recogniser(path)
    write_graph(path, batch=1, channels=4)
    with pytest.raises(CheckpointError, match=r"expected one float input \(B, 3, H, W\)"):
        load_recogniser(path)
    # a free batch that the graph then flattens away
    write_graph(path, batch="N", reshape=True)
    with pytest.raises(CheckpointError, match=r"failed on float32 input of shape \(2, 3, 32, 32\): .*MatMul"):
        load_recogniser(path).embed(images(2, SIDE))
    write_graph(path, batch="N", reshape=True, multiply=False)
    with pytest.raises(CheckpointError, match=r"turned 2 images into an output of shape \(1, 6144\); expected a row"):
        load_recogniser(path).embed(images(2, SIDE))


def test_damaged_graphs_are_refused_or_run(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_graph(path, batch="N", nodes_before=2)
    whole = path.read_bytes()

    @given(
        cut=st.one_of(st.just(0), st.integers(0, len(whole) - 1)),
        # the numbers of the matrix lie in between, and no checksum guards them
        flips=st.lists(st.tuples(st.integers(-400, 400), st.integers(0, 7)), max_size=3),
    )
    @settings(max_examples=60, deadline=None)
    def check(cut: int, flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(whole[: len(whole) - cut])
        for place, bit in flips:
            damaged[place % len(damaged)] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = load_recogniser(path).embed(images(2, SIDE))
        except CheckpointError:
            return
        assert found.shape[0] == 2

    check()


# --- preprocessing


def test_pixels_are_scaled_in_rgb_order_and_then_swapped() -> None:
    preprocessing = Preprocessing(mean=(10, 20, 30), std=(1, 2, 4), channel_order="bgr")
    image = torch.tensor([255.0, 127.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 112, 112) / 127.5 - 1
    blue, green, red = preprocessing(image)[0, :, 5, 5].tolist()
    assert (red, green, blue) == pytest.approx((245.0, 53.75, -7.5), abs=1e-4)


def test_sizes_are_cropped_or_resized() -> None:
    faces = images(1)
    assert torch.equal(Preprocessing(size=(112, 96))(faces), faces[..., 8:104])
    resized = Preprocessing(size=(160, 160))(faces)
    expected = F.interpolate(faces, (160, 160), mode="bilinear", antialias=True)
    torch.testing.assert_close(resized, expected)
    assert Preprocessing(size=(128, 112))(faces).shape == (1, 3, 128, 112)


def test_preprocessing_is_differentiable() -> None:
    faces = images(1).requires_grad_()
    Preprocessing(size=(96, 80), channel_order="bgr")(faces).sum().backward()
    assert faces.grad is not None
    assert faces.grad.abs().sum() > 0


def test_bad_preprocessing_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"look like shares of 1; .*multiply them by 255"):
        Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    with pytest.raises(ShapeError, match=r"channel_order is 'grb'"):
        Preprocessing(channel_order="grb")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"std > 0"):
        Preprocessing(std=(1, 0, 1))
    with pytest.raises(ShapeError, match=r"size is \(96, 112\); expected \(height, width\) with width at most"):
        Preprocessing(size=(96, 112))
    with pytest.raises(ShapeError, match=r"images are torch\.uint8 .*expected float \(B, 3, H, W\)"):
        Preprocessing()(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))


# --- recognisers from checkpoints


def test_embeddings_are_those_of_the_backbone_whatever_the_batch(checkpoint: Path) -> None:
    recogniser = load_recogniser(checkpoint)
    assert recogniser.backbone is not None
    faces = images(35)
    expected = recogniser.backbone(faces)
    torch.testing.assert_close(recogniser.embed(faces), expected.detach(), rtol=1e-3, atol=1e-4)
    assert not recogniser.embed(faces[:1]).requires_grad
    assert recogniser.embed(faces[:0]).shape == (0, 16)
    with pytest.raises(ShapeError, match=r"images have shape \(3, 112, 112\); expected \(B, 3, H, W\)"):
        recogniser.embed(faces[0])


def test_a_network_that_reads_no_images_is_no_recogniser(save: Callable[..., Path]) -> None:
    path = save(build_backbone("mobilefacenet-client", in_channels=30, width=0.125).state_dict(), "client.pth")
    with pytest.raises(CheckpointError, match=r"client\.pth holds a mobilefacenet-client for 30 input channels"):
        load_recogniser(path)


# --- real faces


@pytest.fixture(scope="module")
def faces(shared: Path) -> tuple[Tensor, Tensor]:
    """Four images each of 16 people whom nothing here was trained on."""
    people: dict[str, list[Tensor]] = {}
    with open(shared / "faces" / "test.csv") as table:
        for row in csv.DictReader(table):
            known = people.setdefault(row["identity"], [])
            if len(people) <= 16 and len(known) < 4:
                pixels = cv2.imread(str(shared / "faces" / row["path"]))[..., ::-1].copy()
                known.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1)
    chosen = [known for known in people.values() if len(known) == 4]
    assert len(chosen) >= 15
    return torch.stack([image for known in chosen for image in known]), torch.arange(len(chosen)).repeat_interleave(4)


def best_pair_accuracy(recogniser: Recogniser, faces: tuple[Tensor, Tensor]) -> float:
    """Balanced accuracy over all pairs at the best threshold."""
    unit = F.normalize(recogniser.embed(faces[0], flip=True))
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    same = faces[1][first] == faces[1][second]
    scores = (unit[first] * unit[second]).sum(1)
    thresholds = scores.unique()[:, None]
    genuine = (scores[same] >= thresholds).float().mean(1)
    impostor = (scores[~same] < thresholds).float().mean(1)
    return float(((genuine + impostor) / 2).max())


@pytest.mark.parametrize("name", [TEACHER, JUDGE])
def test_teacher_and_judge_tell_people_apart(name: str, shared: Path, faces: tuple[Tensor, Tensor]) -> None:
    recogniser = load_recogniser(shared / "models" / name)
    assert recogniser.embedding_size == 128
    assert best_pair_accuracy(recogniser, faces) > 0.93


def test_the_judge_needs_its_own_preprocessing(shared: Path, faces: tuple[Tensor, Tensor]) -> None:
    judge = load_recogniser(shared / "models" / JUDGE)
    assert str(judge.preprocessing) == (
        "RGB 112x112, (pixel - 123.675 116.28 103.53) / 58.395 57.12 57.375 (known file)"
    )
    wrong = load_recogniser(shared / "models" / JUDGE, channel_order="bgr")
    assert best_pair_accuracy(wrong, faces) < best_pair_accuracy(judge, faces)
