"""A batch over two ranks against the same batch on one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppfr.distributed.global_batch import GlobalBatch, batch_mean, convert_layers, rand, randint, randn
from ppfr.distributed.process_group import Ranks
from support.processes import on_ranks

ROWS, WORLD = 6, 2


def dealt(whole: Tensor, rank: int) -> Tensor:
    return whole[rank::WORLD]


DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "rand": lambda rows, g: rand((rows, 3), g),
    "randn": lambda rows, g: randn((rows,), g),
    "randint": lambda rows, g: randint(9, (rows, 2), g),
    "several an image": lambda rows, g: rand((rows * 4, 5), g).view(rows, 4, 5),
}


def generator_of(rank: int, rows: int = ROWS) -> torch.Generator:
    return GlobalBatch(Ranks(rank, WORLD), rows).generator(3, torch.device("cpu"))


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_belongs_to_the_place_in_the_batch(name: str) -> None:
    """The one-process draw is the oracle."""
    draw = DRAWS[name]
    whole = draw(ROWS * WORLD, torch.Generator().manual_seed(3))
    for rank in range(WORLD):
        assert torch.equal(draw(ROWS, generator_of(rank)), dealt(whole, rank))


def test_a_draw_for_the_batch_as_a_whole_is_common() -> None:
    draws = []
    for rank in range(WORLD):
        generator = generator_of(rank)
        single, order = torch.rand((), generator=generator), torch.randperm(7, generator=generator)
        draws.append([single, order, rand((4,), generator)])
    assert all(torch.equal(first, second) for first, second in zip(*draws, strict=True))


def converted(layer: nn.Module, rank: int) -> nn.Module:
    network = nn.Sequential(layer)
    convert_layers(network, GlobalBatch(Ranks(rank, WORLD), ROWS))
    return network


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_is_that_of_the_whole_batch(layout: torch.memory_format) -> None:
    whole = torch.randn(ROWS * WORLD, 5, 4, 4).contiguous(memory_format=layout)
    torch.manual_seed(1)
    expected = nn.Dropout(0.3)(whole.requires_grad_())
    for rank in range(WORLD):
        torch.manual_seed(1)
        mine = converted(nn.Dropout(0.3), rank)(dealt(whole, rank).contiguous(memory_format=layout))
        torch.testing.assert_close(mine, dealt(expected, rank))


def test_evaluation_and_one_rank_are_left_alone() -> None:
    values = torch.randn(ROWS, 5)
    norm, dropout = nn.BatchNorm1d(5), nn.Dropout(0.5)
    expected = norm.eval()(values)
    assert torch.equal(converted(norm, 0).eval()(values), expected)
    assert torch.equal(converted(dropout, 0).eval()(values), values)
    network = nn.Sequential(norm, dropout)
    convert_layers(network, GlobalBatch(Ranks(), ROWS))
    assert network[0] is norm and network[1] is dropout
    generator = GlobalBatch(Ranks(), ROWS).generator(0, torch.device("cpu"))
    assert torch.equal(rand((ROWS,), generator), torch.rand(ROWS, generator=torch.Generator().manual_seed(0)))


def test_a_converted_layer_keeps_its_weights_its_names_and_its_sharing() -> None:
    norm = nn.BatchNorm2d(4)
    first, second = nn.Sequential(norm), nn.Sequential(norm)
    network = nn.ModuleDict({"first": first, "second": second})
    before = network.state_dict(keep_vars=True)
    convert_layers(network, GlobalBatch(Ranks(0, WORLD), ROWS))
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert first[0] is second[0] is not norm


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
        convert_layers(network, GlobalBatch(ranks, len(images)))
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

    def loss(values: Tensor, generator: torch.Generator) -> Tensor:
        return batch_mean(values.square().mean(), generator) / batch_mean(values.mean(), generator)

    def work() -> dict[str, Tensor]:
        ranks = Ranks.from_environment()
        mine = whole[ranks.rank :: 2].clone().requires_grad_()
        value = loss(mine, GlobalBatch(ranks, 2).generator(0, torch.device("cpu")))
        value.backward()
        assert mine.grad is not None
        # as the gradients of weights are averaged over ranks
        return {"loss": value.detach(), "gradient": mine.grad / ranks.world}

    alone = whole.clone().requires_grad_()
    expected = loss(alone, torch.Generator())
    expected.backward()
    assert alone.grad is not None
    for rank, found in enumerate(on_ranks(2, work)):
        torch.testing.assert_close(found["loss"], expected.detach())
        torch.testing.assert_close(found["gradient"], alone.grad[rank::2])
