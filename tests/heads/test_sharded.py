"""Heads over two ranks against the whole head, and losses over a sample of classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppfr.distributed.process_group import Ranks
from ppfr.heads import Head, ShardedHead, build_head, class_range, head_names, sample_rows
from ppfr.util.errors import MethodError, ShapeError
from support.processes import on_ranks

SIZE, CLASSES, BATCH = 20, 13, 8
# a whole head's names of what a shard has
RENAMED = {"kernel": "centres"}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    embeddings = 10 * torch.randn(BATCH, SIZE, generator=generator)
    return embeddings, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def whole_head(name: str) -> Head:
    return build_head(name, embedding_size=SIZE, classes=CLASSES, generator=torch.Generator().manual_seed(7))


def shard(name: str, ranks: Ranks = Ranks(), **options: float) -> ShardedHead:
    generator = torch.Generator().manual_seed(7)
    return ShardedHead(name, embedding_size=SIZE, classes=CLASSES, ranks=ranks, generator=generator, **options)


def by_class(value: Tensor) -> Tensor:
    return value.T if value.ndim == 2 else value


def rows_of(head: Head) -> dict[str, Tensor]:
    """A whole head's parameters, one row a class."""
    return {RENAMED.get(name, name): by_class(value.detach()) for name, value in head.named_parameters()}


def gradient_rows(head: Head) -> dict[str, Tensor]:
    found = {}
    for name, value in head.named_parameters():
        assert value.grad is not None
        found[RENAMED.get(name, name)] = by_class(value.grad)
    return found


@pytest.mark.parametrize("name", head_names())
@pytest.mark.parametrize("world", [1, 2])
def test_shards_are_the_whole_head(name: str, world: int) -> None:
    """Losses, gradients and moving statistics over three batches, and the first draw of the centres."""

    def work() -> list[dict[str, Tensor]]:
        ranks = Ranks.from_environment() if world > 1 else Ranks()
        head, steps = shard(name, ranks), []
        for step in range(3):
            embeddings, labels = batch(step)
            mine = embeddings[ranks.rank :: world].clone().requires_grad_()
            head.zero_grad()
            loss = head(mine, labels[ranks.rank :: world])
            loss.backward()
            assert mine.grad is not None
            # the average over ranks that weight gradients go through
            values = {"loss": loss.detach(), "embeddings": mine.grad / world}
            values |= {key: value.clone() for key, value in head.formula.named_buffers()}
            for own, parameter in head.class_parameters().items():
                assert parameter.grad is not None
                values |= {own: parameter.detach(), f"{own}.grad": parameter.grad}
            steps.append(values)
        return steps

    whole, expected = whole_head(name), []
    for step in range(3):
        embeddings, labels = batch(step)
        embeddings.requires_grad_()
        whole.zero_grad()
        loss = F.cross_entropy(whole(embeddings, labels), labels)
        loss.backward()
        assert embeddings.grad is not None
        state = {key: value.clone() for key, value in whole.named_buffers()}
        expected.append((loss.detach(), embeddings.grad, state, rows_of(whole), gradient_rows(whole)))

    for rank, steps in enumerate(on_ranks(world, work) if world > 1 else [work()]):
        first, last = class_range(CLASSES, Ranks(rank, world))
        for values, (loss, gradient, state, rows, row_gradients) in zip(steps, expected, strict=True):
            torch.testing.assert_close(values["loss"], loss, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(values["embeddings"], gradient[rank::world], rtol=1e-4, atol=1e-5)
            for key, value in state.items():
                torch.testing.assert_close(values[key], value)
            for key, value in rows.items():
                assert torch.equal(values[key], value[first:last])
                torch.testing.assert_close(values[f"{key}.grad"], row_gradients[key][first:last], rtol=1e-4, atol=1e-5)


@given(count=st.integers(1, 60), rate=st.floats(0.01, 1.0), seed=st.integers(0, 99), data=st.data())
def test_the_sample_holds_all_positives(count: int, rate: float, seed: int, data: st.DataObject) -> None:
    positives = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), dtype=torch.int64)
    rows = sample_rows(positives, count, rate, torch.Generator().manual_seed(seed))
    assert set(positives.tolist()) <= set(rows.tolist())
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == max(len(positives.unique()), -int(-rate * count // 1))


def test_all_classes_are_sampled_in_the_long_run_and_draws_follow_the_generator() -> None:
    draws = [sample_rows(torch.tensor([3]), 40, 0.2, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert torch.equal(draws[0], sample_rows(torch.tensor([3]), 40, 0.2, torch.Generator().manual_seed(0)))
    assert len(torch.cat(draws).unique()) == 40


@pytest.mark.parametrize("name", head_names())
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_sampled_step_is_a_step_of_a_head_with_these_classes_alone(name: str, kind: str) -> None:
    """The oracle is a whole head built of the sampled columns; classes outside the sample must not move."""
    head = shard(name, sample_rate=0.5)
    optimizer = make(kind, head)
    before = {key: value.detach().clone() for key, value in head.class_parameters().items()}
    embeddings, labels = batch(0)
    loss = head(embeddings, labels, torch.Generator().manual_seed(1))
    loss.backward()
    rows = head.rows
    assert rows is not None and set(labels.tolist()) <= set(rows.tolist()) and len(rows) < CLASSES

    small = build_head(name, embedding_size=SIZE, classes=len(rows))
    with torch.no_grad():
        small.kernel.copy_(before["centres"][rows].T)
    small_optimizer = make(kind, small)
    position = torch.searchsorted(rows, labels)
    expected = F.cross_entropy(small(embeddings, position), position)
    expected.backward()
    small_optimizer.step()
    torch.testing.assert_close(loss, expected)

    with head.stepping(optimizer):
        optimizer.step()
    outside = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, rows, False)
    for key, value in rows_of(small).items():
        after = head.class_parameters()[key].detach()
        torch.testing.assert_close(after[rows], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(after[outside], before[key][outside])


def make(kind: str, head: torch.nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_follows_its_rows(kind: str) -> None:
    """Three sampled steps: each row's state is that of the steps it took part in, untouched in between."""
    head = shard("cosface", sample_rate=0.4)
    optimizer = make(kind, head)
    for step in range(3):
        held = {key: value.clone() for key, value in optimizer.state.get(head.centres, {}).items() if value.ndim}
        head(*batch(step), torch.Generator().manual_seed(step)).backward()
        with head.stepping(optimizer):
            optimizer.step()
        rows = head.rows
        assert rows is not None
        assert head.centres.shape == (CLASSES, SIZE) and head.centres.grad is None
        outside = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, rows, False)
        state = {key: value for key, value in optimizer.state[head.centres].items() if value.ndim}
        assert state
        for key, value in state.items():
            assert value.shape == (CLASSES, SIZE)
            assert (value[rows] != held.get(key, torch.zeros_like(value))[rows]).any()
            assert torch.equal(value[outside], held.get(key, torch.zeros_like(value))[outside])


def test_a_whole_sample_is_no_sample() -> None:
    """Rate 1 takes the short way; a rate that rounds up to all classes must agree with it."""
    full, nearly = shard("arcface"), shard("arcface", sample_rate=0.999)
    values = []
    for head in (full, nearly):
        optimizer = make("sgd", head)
        for step in range(3):
            optimizer.zero_grad()
            loss = head(*batch(step), torch.Generator().manual_seed(step))
            loss.backward()
            with head.stepping(optimizer):
                optimizer.step()
        values.append((loss.detach(), head.centres.detach()))
    torch.testing.assert_close(values[0], values[1])


def test_sampled_shards_draw_for_themselves() -> None:
    """Over two ranks each positive is kept by its owner, and the loss is one number for all."""

    def work() -> dict[str, Tensor]:
        ranks = Ranks.from_environment()
        head = shard("arcface", ranks, sample_rate=0.3)
        embeddings, labels = batch(0)
        generator = torch.Generator().manual_seed(ranks.rank)
        loss = head(embeddings[ranks.rank :: 2], labels[ranks.rank :: 2], generator)
        assert head.rows is not None
        return {"loss": loss.detach(), "classes": head.rows + head.first}

    found = on_ranks(2, work)
    assert torch.equal(found[0]["loss"], found[1]["loss"])
    taken = torch.cat([values["classes"] for values in found])
    assert set(batch(0)[1].tolist()) <= set(taken.tolist())
    assert (found[0]["classes"] < 6).all() and (found[1]["classes"] >= 6).all()
    # the oracle: a whole head with these classes alone
    small = build_head("arcface", embedding_size=SIZE, classes=len(taken))
    with torch.no_grad():
        small.kernel.copy_(whole_head("arcface").kernel[:, taken])
    embeddings, labels = batch(0)
    position = torch.searchsorted(taken, labels)
    torch.testing.assert_close(found[0]["loss"], F.cross_entropy(small(embeddings, position), position).detach())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MethodError, match=r"sample_rate is 0; expected above 0, at most 1"):
        shard("arcface", sample_rate=0)
    with pytest.raises(MethodError, match=r"13 classes cannot be sharded over 14 ranks"):
        shard("arcface", Ranks(0, 14))
    with pytest.raises(MethodError, match=r"needs a generator"):
        shard("arcface", sample_rate=0.5)(*batch(0))
    with pytest.raises(ShapeError, match=r"expected \(B, 20\)"):
        shard("arcface")(torch.zeros(2, 19), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(MethodError, match=r"unknown head 'sphereface'"):
        shard("sphereface")
