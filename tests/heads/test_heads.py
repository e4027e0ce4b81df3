"""Heads against the reference implementations' numbers, and where their formulas break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ppfr.heads import Head, build_head, head_names
from ppfr.util.errors import MethodError, ShapeError

CASES = {
    "distfc/ArcFace": ("arcface", {}),
    "localfc/ArcFace": ("arcface", {}),
    "distfc/ArcFace-easy": ("arcface", {"easy_margin": True}),
    "distfc/CosFace": ("cosface", {}),
    "localfc/CosFace": ("cosface", {}),
    "distfc/CurricularFace": ("curricularface", {}),
    "localfc/CurricularFace": ("curricularface", {}),
    "adaface/AdaFace": ("adaface", {}),
    "adaface/AdaFace-t1": ("adaface", {"momentum": 1.0}),
}
STATES = {"curricularface": ("t",), "adaface": ("batch_mean", "batch_std")}
MARGINS = [name for name in head_names() if name != "softmax"]


def state_of(head: Head, name: str) -> np.ndarray[Any, Any]:
    buffers = dict(head.named_buffers())
    return np.array([buffers[key].item() for key in STATES.get(name, ())])


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, golden: Callable[[str], Any]) -> None:
    numbers = golden("heads.npz")
    name, options = CASES[case]
    head = build_head(name, embedding_size=64, classes=50, **options)
    head.load_state_dict({"kernel": torch.from_numpy(numbers["weight"])}, strict=False)
    labels = torch.from_numpy(numbers["labels"])
    for call, factor in enumerate([1.0, 1.25, 1.5][: len(numbers[f"{case}/loss"])]):
        if name in STATES:
            np.testing.assert_allclose(state_of(head, name), numbers[f"{case}/state_before"][call], rtol=1e-5)
        embeddings = (torch.from_numpy(numbers["embeddings"]) * factor).requires_grad_()
        logits = head(embeddings, labels)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        np.testing.assert_allclose(logits.detach().numpy(), numbers[f"{case}/logits"][call], atol=1e-3, rtol=0)
        np.testing.assert_allclose(loss.item(), numbers[f"{case}/loss"][call], rtol=1e-4)
        expected = numbers[f"{case}/grad"][call]
        assert embeddings.grad is not None
        allowed = 1e-3 * np.abs(expected).max(axis=1, keepdims=True) + 1e-5
        assert (np.abs(embeddings.grad.numpy() - expected) <= allowed).all()
        if name in STATES:
            np.testing.assert_allclose(state_of(head, name), numbers[f"{case}/state_after"][call], rtol=1e-5)


def head_on_axes(name: str, **options: Any) -> Head:
    """A head whose classes are the unit vectors of four dimensions, so that cosines can be chosen."""
    head = build_head(name, embedding_size=4, classes=4, **options).double()
    with torch.no_grad():
        head.kernel.copy_(torch.eye(4))
    return head


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_gradient_is_finite_where_the_angle_is_zero_or_pi(name: str, cosine: float) -> None:
    head = head_on_axes(name)
    embeddings = torch.tensor([[20.0 * cosine, 0, 0, 0], [1, 2, 3, 4]], dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1])
    F.cross_entropy(head(embeddings, labels), labels).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert head.kernel.grad is not None
    assert head.kernel.grad.isfinite().all()


@given(angle=st.floats(0.01, math.pi - 0.01), margin=st.floats(0.0, 0.7))
def test_arcface_adds_the_margin_to_the_angle(angle: float, margin: float) -> None:
    head = head_on_axes("arcface", margin=margin, scale=10.0)
    embedding = torch.tensor([[math.cos(angle), math.sin(angle), 0, 0]], dtype=torch.float64)
    logits = head(3 * embedding, torch.tensor([0]))[0]
    if angle + margin < math.pi:
        assert logits[0].item() == pytest.approx(10 * math.cos(angle + margin), abs=1e-6)
    assert logits[0].item() <= 10 * math.cos(angle) + 1e-9  # a margin never helps the label
    assert logits[1].item() == pytest.approx(10 * math.sin(angle), abs=1e-9)


@pytest.mark.parametrize("name", MARGINS)
def test_the_label_is_never_helped_and_others_keep_their_order(name: str, generator: torch.Generator) -> None:
    head = build_head(name, embedding_size=16, classes=30).eval()
    embeddings = 20 * torch.randn(64, 16, generator=generator) / 4
    labels = torch.randint(0, 30, (64,), generator=generator)
    cosines = F.normalize(embeddings) @ F.normalize(head.kernel, dim=0)
    logits = head(embeddings, labels) / 64
    target = labels[:, None]
    assert (logits.gather(1, target) <= cosines.gather(1, target) + 1e-5).all()
    if name != "curricularface":  # which changes hard negatives on purpose
        rest = torch.ones_like(logits).scatter(1, target, 0).bool()
        torch.testing.assert_close(logits[rest], cosines[rest], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STATES)
def test_state_moves_in_training_only(name: str, generator: torch.Generator) -> None:
    head = build_head(name, embedding_size=8, classes=5)
    embeddings, labels = torch.randn(6, 8, generator=generator), torch.arange(5).repeat(2)[:6]
    before = state_of(head, name)
    head.eval()(embeddings, labels)
    np.testing.assert_array_equal(state_of(head, name), before)
    head.train()(embeddings, labels)
    assert (state_of(head, name) != before).all()


def test_adaface_takes_a_batch_of_one() -> None:
    head = build_head("adaface", embedding_size=8, classes=5)
    logits = head(torch.ones(1, 8), torch.tensor([3]))
    assert logits.isfinite().all()
    assert head.get_buffer("batch_std").item() == 100.0


def test_softmax_is_a_linear_layer(generator: torch.Generator) -> None:
    head = build_head("softmax", embedding_size=8, classes=5, generator=generator)
    embeddings = torch.randn(3, 8, generator=generator)
    expected = F.linear(embeddings, head.kernel.T, head.get_parameter("bias"))
    torch.testing.assert_close(head(embeddings, torch.zeros(3, dtype=torch.int64)), expected)


@pytest.mark.parametrize("name", head_names())
def test_weights_depend_on_the_generator_alone(name: str) -> None:
    first, second = (build_head(name, embedding_size=8, classes=5).kernel for _ in range(2))
    other = build_head(name, embedding_size=8, classes=5, generator=torch.Generator().manual_seed(1)).kernel
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", head_names())
def test_logits_stay_float32_under_autocast(name: str, generator: torch.Generator) -> None:
    head = build_head(name, embedding_size=8, classes=5).eval()
    embeddings, labels = torch.randn(4, 8, generator=generator), torch.arange(4)
    plain = head(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = head(embeddings, labels)
    assert automatic.dtype == torch.float32
    assert torch.equal(plain, automatic)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MethodError, match=r"unknown head 'sphereface'; expected one of arcface, cosface"):
        build_head("sphereface", embedding_size=8, classes=5)
    with pytest.raises(MethodError, match=r"head 'cosface' has no option 'easy_margin'; it has scale, margin"):
        build_head("cosface", embedding_size=8, classes=5, easy_margin=True)
    with pytest.raises(MethodError, match=r"head 'softmax' has no option 'scale'; it has none"):
        build_head("softmax", embedding_size=8, classes=5, scale=30.0)
    with pytest.raises(MethodError, match=r"margin -0\.1"):
        build_head("arcface", embedding_size=8, classes=5, margin=-0.1)
    with pytest.raises(MethodError, match=r"momentum is 2; expected 0 to 1"):
        build_head("adaface", embedding_size=8, classes=5, momentum=2)
    with pytest.raises(MethodError, match=r"classes 0"):
        build_head("arcface", embedding_size=8, classes=0)


def test_bad_shapes_are_refused() -> None:
    head = build_head("arcface", embedding_size=8, classes=5)
    with pytest.raises(ShapeError, match=r"embeddings have shape \(2, 7\); expected \(B, 8\)"):
        head(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"labels are torch\.int64 of shape \(3,\); expected torch\.int64 \(2,\)"):
        head(torch.zeros(2, 8), torch.zeros(3, dtype=torch.int64))
