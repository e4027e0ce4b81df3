"""A batch over two ranks against the same batch on one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.distributed.global_batch import batch_mean, global_batch
from ppfr.distributed.process_group import Ranks
from support.processes import on_ranks

ROWS, WORLD = 6, 2


def dealt(whole: Tensor, rank: int) -> Tensor:
    return whole[rank::WORLD]


DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "rand": lambda rows, g: torch.rand((rows, 3), generator=g),
    "rand with arguments": lambda rows, g: torch.rand(rows, 3, generator=g),
    "randn by keyword": lambda rows, g: torch.randn(size=(rows,), generator=g),
    "randint": lambda rows, g: torch.randint(9, (rows, 2), generator=g),
    "randint from to": lambda rows, g: torch.randint(2, 9, (rows,), generator=g),
    "several an image": lambda rows, g: torch.rand((rows * 4, 5), generator=g).view(rows, 4, 5),
    "bernoulli": lambda rows, g: torch.bernoulli(torch.full((rows, 8), 0.4), generator=g),
}


@pytest.mark.parametrize("name", [name for name in DRAWS if name != "bernoulli"])
def test_a_draw_belongs_to_the_place_in_the_batch(name: str) -> None:
    """The one-process draw is the oracle."""
    draw = DRAWS[name]
    whole = draw(ROWS * WORLD, torch.Generator().manual_seed(3))
    for rank in range(WORLD):
        generator = torch.Generator().manual_seed(3)
        with global_batch(Ranks(rank, WORLD), ROWS):
            mine = draw(ROWS, generator)
        assert torch.equal(mine, dealt(whole, rank))


def test_bernoulli_differs_between_images_and_keeps_its_probability() -> None:
    parts = []
    for rank in range(WORLD):
        with global_batch(Ranks(rank, WORLD), 400):
            parts.append(torch.bernoulli(torch.full((400, 8), 0.4), generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(*parts)
    assert float(torch.cat(parts).mean()) == pytest.approx(0.4, abs=0.04)


def test_a_draw_for_the_batch_as_a_whole_is_common() -> None:
    draws = []
    for rank in range(WORLD):
        generator = torch.Generator().manual_seed(3)
        with global_batch(Ranks(rank, WORLD), ROWS):
            single, order = torch.rand((), generator=generator), torch.randperm(7, generator=generator)
            draws.append([single, order, torch.rand((4,), generator=generator)])
    assert all(torch.equal(first, second) for first, second in zip(*draws, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_is_that_of_the_whole_batch(layout: torch.memory_format) -> None:
    whole = torch.randn(ROWS * WORLD, 5, 4, 4).contiguous(memory_format=layout)
    torch.manual_seed(1)
    expected = nn.Dropout(0.3)(whole.requires_grad_())
    for rank in range(WORLD):
        torch.manual_seed(1)
        with global_batch(Ranks(rank, WORLD), ROWS):
            mine = nn.Dropout(0.3)(dealt(whole, rank).contiguous(memory_format=layout))
        torch.testing.assert_close(mine, dealt(expected, rank))


def test_evaluation_and_one_rank_are_left_alone() -> None:
    values = torch.randn(ROWS, 5)
    norm = nn.BatchNorm1d(5).eval()
    with global_batch(Ranks(0, WORLD), ROWS):
        assert torch.equal(F.dropout(values, 0.5, training=False), values)
        assert torch.equal(norm(values), norm(values))
    with global_batch(Ranks(), ROWS):
        drawn = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.rand(ROWS, generator=torch.Generator().manual_seed(0)))


def _network(affine: bool) -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=affine), nn.PReLU(6), nn.Flatten(), nn.BatchNorm1d(6 * 36)
    )
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return network.double()


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_normalise_over_all_ranks(affine: bool) -> None:
    """Outputs, running statistics and gradients equal those of one process with the whole batch."""
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(ROWS * WORLD, 3, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.randn(ROWS * WORLD, 6 * 36, generator=generator, dtype=torch.float64)

    def work() -> dict[str, Tensor]:
        ranks = Ranks.from_environment()
        network, images = _network(affine), whole[ranks.rank :: ranks.world].clone().requires_grad_()
        with global_batch(ranks, len(images)):
            result = network(images)
        (result * weights[ranks.rank :: ranks.world]).sum().backward()
        assert images.grad is not None
        gradients = {n: ranks.sum_(p.grad.clone()) for n, p in network.named_parameters() if p.grad is not None}
        return {"result": result.detach(), "images": images.grad, **gradients, **dict(network.named_buffers())}

    network, images = _network(affine), whole.clone().requires_grad_()
    result = network(images)
    (result * weights).sum().backward()
    assert images.grad is not None
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    found = on_ranks(WORLD, work)
    for rank, values in enumerate(found):
        torch.testing.assert_close(values["result"], dealt(result.detach(), rank), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values["images"], dealt(images.grad, rank), rtol=1e-4, atol=1e-4)
        for name, expected in {**gradients, **dict(network.named_buffers())}.items():
            torch.testing.assert_close(values[name], expected, rtol=1e-4, atol=1e-4)


def test_a_mean_over_the_batch_has_the_gradient_of_one_process() -> None:
    """A ratio of means: neither the ratio of one rank's means nor its gradient will do."""
    whole = torch.tensor([1.0, 5.0, 2.0, 9.0])

    def loss(values: Tensor) -> Tensor:
        return batch_mean(values.square().mean()) / batch_mean(values.mean())

    def work() -> dict[str, Tensor]:
        ranks = Ranks.from_environment()
        mine = whole[ranks.rank :: 2].clone().requires_grad_()
        with global_batch(ranks, 2):
            value = loss(mine)
        value.backward()
        assert mine.grad is not None
        # as the gradients of weights are averaged over ranks
        return {"loss": value.detach(), "gradient": mine.grad / ranks.world}

    alone = whole.clone().requires_grad_()
    expected = loss(alone)
    expected.backward()
    assert alone.grad is not None
    for rank, found in enumerate(on_ranks(2, work)):
        torch.testing.assert_close(found["loss"], expected.detach())
        torch.testing.assert_close(found["gradient"], alone.grad[rank::2])
