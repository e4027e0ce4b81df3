"""Messages between ranks, and what happens when one of them fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppfr.distributed.process_group import RankError, Ranks, joined
from ppfr.util.errors import RecipeError
from support.processes import on_ranks


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.first and not ranks.several
        assert not torch.distributed.is_initialized()
        values = torch.ones(2)
        ranks.barrier()
        assert ranks.gather(values) is values


def test_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Ranks(3, 4).device("cuda") == torch.device("cuda", 3)
    assert Ranks(3, 4).device("cuda:1") == torch.device("cuda", 1)
    assert Ranks().device("cuda") == torch.device("cuda")
    assert Ranks(3, 4).device("cpu") == torch.device("cpu")


def test_messages() -> None:
    def work() -> dict[str, Tensor]:
        with joined() as ranks:
            own = torch.tensor([[1.0 + ranks.rank, 10.0]])
            return {
                "gather": ranks.gather(own),
                "sum": ranks.sum_(own.clone()),
                "max": ranks.max_(own.clone()),
            }

    for found in on_ranks(2, work):
        assert found["gather"].tolist() == [[1, 10], [2, 10]]
        assert found["sum"].tolist() == [[3, 20]]
        assert found["max"].tolist() == [[2, 10]]


def test_what_fails_on_the_first_rank_fails_on_all() -> None:
    def refuse() -> None:
        raise RecipeError("the folder is taken")

    def work() -> str:
        ranks = Ranks.from_environment()
        done: list[int] = []
        ranks.on_first(lambda: done.append(1))
        assert len(done) == (1 if ranks.first else 0)
        with pytest.raises((RecipeError, RankError)) as caught:
            ranks.on_first(refuse)
        return str(caught.value)

    assert on_ranks(2, work) == ["the folder is taken", "the first rank failed; its message says why"]
