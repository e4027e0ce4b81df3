"""The pattern optimiser against a loop that treats one image at a time, against recorded numbers, and across stops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.methods.common.patterns import EmbeddingMatch, Judged, Patterns, UpdateRule, find_patterns
from ppfr.networks import build_backbone
from ppfr.networks.inference import reading_channel
from ppfr.transforms import remove_frequencies
from ppfr.util.errors import CheckpointError, MethodError, ShapeError


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A tiny recogniser, bent enough that losses rise now and then."""
    generator = torch.Generator().manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5)).double()
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.9 if weight.ndim > 2 else 0.3))
    return layers.requires_grad_(False)


def noise(rows: int, seed: int = 0) -> Tensor:
    return torch.randn((rows, 1, 9, 9), generator=torch.Generator().manual_seed(seed)).double()


def match(network: nn.Module, rows: int) -> EmbeddingMatch:
    return EmbeddingMatch(network, network(torch.sigmoid(noise(rows, seed=7))))


def one_by_one(network: nn.Module, start: Tensor, targets: Tensor, rule: UpdateRule) -> tuple[Tensor, list[int], int]:
    """The method as it is told: one image, one step at a time; also the updates of each and how often steps shrank."""
    found, counts, shrunk = [], [], 0
    for image, target in zip(start, targets, strict=True):
        velocity, step, rises, before, updates = torch.zeros_like(image), rule.step, 0, float("inf"), 0
        while updates < rule.iterations:
            image = image.clone().requires_grad_()
            embedding = network(image[None])[0]
            if rule.stop_at is not None and updates and F.cosine_similarity(embedding, target, 0) >= rule.stop_at:
                break
            loss = ((embedding - target) ** 2).mean()
            loss.backward()
            loss = loss.detach()
            if float(loss) > before:
                rises += 1
                if rises == rule.patience:
                    step, rises, shrunk = step * rule.decay, 0, shrunk + 1
            before = float(loss)
            gradient = image.grad / image.grad.abs().mean()
            velocity = rule.momentum * velocity + gradient
            image = (image.detach() - step * velocity).clamp(0, 1)
            updates += 1
        found.append(image.detach())
        counts.append(updates)
    return torch.stack(found), counts, shrunk


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("stop_at", [None, 0.999])
def test_batches_are_images_one_by_one(network: nn.Module, batch_size: int, stop_at: float | None) -> None:
    rule = UpdateRule(iterations=60, stop_at=stop_at, step=0.05, patience=2)
    term = match(network, 5)
    expected, updates, shrunk = one_by_one(network, noise(5), term.targets, rule)
    found = find_patterns(noise(5), [term], rule, batch_size=batch_size)
    assert torch.allclose(found.pattern, expected, rtol=0, atol=1e-9)
    assert found.updates.tolist() == updates
    assert shrunk > 0, "a test in which no step shrinks tests less"
    if stop_at is not None:
        assert len(set(updates)) > 1, "a test in which no image stops early tests less"


def test_the_books_close_on_the_patterns_as_they_are(network: nn.Module) -> None:
    term = match(network, 3)
    found = find_patterns(noise(3), [term], UpdateRule(iterations=25))
    judged = term(found.pattern, torch.arange(3))
    assert torch.allclose(found.loss, judged.loss)
    assert torch.allclose(found.cosine, judged.cosine)
    assert bool(found.finished.all())
    assert float(found.pattern.min()) >= 0 and float(found.pattern.max()) <= 1


def test_finished_images_leave_the_batch_and_others_take_their_place(network: nn.Module) -> None:
    seen: list[list[int]] = []
    term = match(network, 6)

    def watched(patterns: Tensor, rows: Tensor) -> Judged:
        seen.append(rows.tolist())
        return term(patterns, rows)

    found = find_patterns(noise(6), [watched], UpdateRule(iterations=80, stop_at=0.99), batch_size=3)
    assert bool((found.cosine[found.updates < 80] >= 0.99).all())
    for rows, later in pairwise(seen):
        gone = set(rows) - set(later)
        assert not any(row in batch for row in gone for batch in seen[seen.index(later) :])
    assert max(len(rows) for rows in seen) == 3
    assert sum(len(rows) for rows in seen) == int(found.updates.sum()) + 6


def test_terms_add_up(network: nn.Module) -> None:
    term = match(network, 2)

    def dark(patterns: Tensor, rows: Tensor) -> Judged:
        return Judged(0.3 * patterns.square().mean(dim=(1, 2, 3)))

    def both(patterns: Tensor, rows: Tensor) -> Judged:
        first = term(patterns, rows)
        return Judged(first.loss + dark(patterns, rows).loss, first.cosine)

    rule = UpdateRule(iterations=30)
    apart = find_patterns(noise(2), [dark, term], rule)
    together = find_patterns(noise(2), [both], rule)
    assert torch.allclose(apart.pattern, together.pattern, rtol=0, atol=1e-9)
    assert not torch.allclose(apart.pattern, find_patterns(noise(2), [term], rule).pattern, atol=1e-3)


class Stopped(Exception):
    """What ends a search in the middle."""


@pytest.mark.parametrize("calls", [1, 7, 40])
def test_a_search_that_was_stopped_goes_on_exactly(network: nn.Module, tmp_path: Path, calls: int) -> None:
    rule = UpdateRule(iterations=40, stop_at=0.9999)
    term, state = match(network, 4), tmp_path / "search.safetensors"
    unbroken = find_patterns(noise(4), [term], rule, batch_size=3)
    left = calls

    def interrupted(patterns: Tensor, rows: Tensor) -> Judged:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        return term(patterns, rows)

    with pytest.raises(Stopped):
        find_patterns(noise(4), [interrupted], rule, batch_size=3, state_file=state, key="a", save_seconds=-1)
    assert state.exists()
    # other noise: a client draws anew, and what counts is in the file
    resumed = find_patterns(noise(4, seed=9), [term], rule, batch_size=3, state_file=state, key="a")
    assert torch.equal(resumed.pattern, unbroken.pattern)
    assert torch.equal(resumed.updates, unbroken.updates)
    assert torch.equal(resumed.loss, unbroken.loss)
    assert not state.exists()


def test_the_state_of_another_search_is_refused(network: nn.Module, tmp_path: Path) -> None:
    term, state = match(network, 2), tmp_path / "search.safetensors"
    books = Patterns.begin(noise(2), 0.02)
    books.save(state, "whatever")
    with pytest.raises(CheckpointError, match="begun with other images, weights or settings"):
        find_patterns(noise(2), [term], UpdateRule(), state_file=state)
    state.write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"search\.safetensors cannot be read"):
        find_patterns(noise(2), [term], UpdateRule(), state_file=state)


def test_a_flat_loss_moves_nothing() -> None:
    found = find_patterns(noise(1), [lambda patterns, rows: Judged(0 * patterns.sum((1, 2, 3)))], UpdateRule(2))
    assert torch.equal(found.pattern, noise(1).clamp(0, 1))


def test_it_runs_where_gradients_are_off(network: nn.Module) -> None:
    rule = UpdateRule(iterations=5)
    expected = find_patterns(noise(2), [match(network, 2)], rule)
    with torch.inference_mode():
        found = find_patterns(noise(2), [match(network, 2)], rule)
    assert torch.equal(found.pattern, expected.pattern)


def test_what_cannot_be_optimised_is_refused(network: nn.Module) -> None:
    def lost(patterns: Tensor, rows: Tensor) -> Judged:
        return Judged(patterns.sum(dim=(1, 2, 3)) * float("nan"))

    with pytest.raises(MethodError, match="loss is nan; expected finite"):
        find_patterns(noise(1), [lost], UpdateRule(3))
    with pytest.raises(MethodError, match=r"stop_at is 0\.9, but no loss term knows a cosine"):
        find_patterns(noise(1), [lambda p, rows: Judged(p.sum((1, 2, 3)))], UpdateRule(3, stop_at=0.9))
    with pytest.raises(ShapeError, match=r"shape \(1, 9, 9\); expected floats"):
        find_patterns(noise(1)[0], [match(network, 1)], UpdateRule(3))


# --- recorded numbers ----------------------------------------------------------------------------------------------


def rule_values(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """The value rule of the golden files, for weights and biases."""
    period = 1000003
    c = sum((k + 1) * ord(letter) for k, letter in enumerate(key)) % period
    j = np.arange(int(np.prod(shape)), dtype=np.int64) % period
    values = 2 * ((7919 * (j * j % period) + 104729 * j + 131 * c) % period) / period - 1
    scale = gain * np.sqrt(3 / np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return torch.from_numpy((scale * values).astype(np.float32).reshape(shape))


@pytest.mark.parametrize(("dtype", "updates"), [(torch.float64, 10), (torch.float32, 1)])
def test_the_steps_are_the_recorded_ones(golden: Callable[[str], Any], dtype: torch.dtype, updates: int) -> None:
    """The first ten losses and images; later ones, and in float32 all but the first, are ruled by rounding."""
    recorded = golden("dra.npz")
    recogniser = build_backbone("lightcnn-29v4").eval()
    values = {
        key: rule_values(key, tuple(value.shape), float(recorded["gain"][0]))
        for key, value in recogniser.state_dict().items()
    }
    recogniser.load_state_dict(values)
    recogniser.to(dtype).requires_grad_(False)
    image = torch.from_numpy(recorded["image"]).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    target = recogniser(remove_frequencies(image, raw_range=True))
    term = EmbeddingMatch(reading_channel(recogniser, 1).requires_grad_(False), target)
    losses: list[float] = []
    images: list[Tensor] = []

    def recording(patterns: Tensor, rows: Tensor) -> Judged:
        judged = term(patterns, rows)
        losses.append(float(judged.loss.detach()))
        images.append(patterns.detach()[0, 0].clone())
        return judged

    start = torch.from_numpy(recorded["noise"]).to(dtype)
    find_patterns(start, [recording], UpdateRule(iterations=updates, step=float(recorded["alpha"][0])))
    wanted = recorded["loss" if dtype == torch.float32 else "loss_float64"]
    y, x = torch.from_numpy(recorded["ipos"]).long().T
    for after, loss in enumerate(losses):
        assert loss == pytest.approx(wanted[after], rel=1e-4 if after <= 7 else 5e-3)
    suffix = "" if dtype == torch.float32 else "_float64"
    for after, expected in zip(recorded["after"], recorded[f"images{suffix}"], strict=True):
        if after <= updates:
            difference = (images[after][y, x].float() - torch.from_numpy(expected).float()).abs().mean()
            assert float(difference) < (1e-5 if after <= 3 else 1e-4 if after <= 5 else 1e-2)
