"""CPGAN: players take turns, errors mean what they say, and a collapse is told."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.cpgan import Contest, relative_error
from ppfr.util.errors import MethodError


def small(**options: object) -> Method:
    return ppfr.create("cpgan", "mobilefacenet", width=0.25, embedding_size=32, **options)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand((4, 3, 14, 14), generator=drawn(5)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=112, mode="bilinear")


def play(contest: Contest, images: Tensor) -> tuple[set[str], dict[str, float]]:
    """Which players got gradients in one step, and its losses."""
    contest.zero_grad(set_to_none=True)
    step = contest(images)
    embedding = step.embedding.square().sum()
    torch.stack([embedding, *step.losses.values()]).sum().backward()
    players = {name.split(".")[0] for name, weight in contest.named_parameters() if weight.grad is not None}
    return players, {name: float(loss.detach()) for name, loss in step.losses.items()}


def test_players_take_turns(images: Tensor) -> None:
    (stage,) = small(rounds=2).stages()
    contest = stage.module.train()
    turns = [play(contest, images) for _ in range(6)]
    attack, defence = {"adversary"}, {"client", "server"}
    assert [players for players, _ in turns] == [attack, attack, defence] * 2
    # both sides' losses are there in every step, for the log
    assert all(losses.keys() == {"adversary", "privacy"} for _, losses in turns)


def test_whose_turn_it_is_survives_a_checkpoint(images: Tensor) -> None:
    (stage,), (again,) = small().stages(), small().stages()
    play(stage.module, images)
    again.module.load_state_dict(stage.module.state_dict())
    assert play(again.module, images)[0] == {"client", "server"}


def test_the_adversary_learns_on_its_own_turns(images: Tensor) -> None:
    (stage,) = small().stages()
    contest = stage.module
    optimizer = torch.optim.Adam(contest.adversary.parameters(), lr=5e-3)
    errors = []
    for _ in range(25):
        contest.turn.zero_()
        errors.append(play(contest, images)[1]["adversary"])
        optimizer.step()
    assert errors[-1] < 0.6 * errors[0] and errors[-1] < 0.9


def test_the_defence_makes_reconstruction_worse(images: Tensor) -> None:
    """Against a trained adversary that stands still, the privatiser's own loss falls and the error rises."""
    (stage,) = small(privacy_weight=1.0).stages()
    contest = stage.module
    stage.calibrate(images, drawn())
    optimizer = torch.optim.Adam(contest.adversary.parameters(), lr=5e-3)
    code = contest.client(images).detach()
    for _ in range(40):
        optimizer.zero_grad()
        relative_error(contest.adversary(code), images).backward()
        optimizer.step()
    before = float(relative_error(contest.adversary(contest.client(images)), images).detach())
    optimizer = torch.optim.Adam(contest.client.parameters(), lr=5e-3)
    for _ in range(8):
        contest.zero_grad(set_to_none=True)
        contest.turn.fill_(1)
        contest(images).losses["privacy"].backward()
        optimizer.step()
    after = float(relative_error(contest.adversary(contest.client(images)), images).detach())
    assert after > 1.2 * before


def test_the_gain_from_a_wrong_reconstruction_is_bounded(images: Tensor) -> None:
    (stage,) = small().stages()
    contest = stage.module
    with torch.no_grad():
        for weight in contest.adversary.parameters():
            weight.mul_(50)
    contest.turn.fill_(1)
    assert play(contest, images)[1]["privacy"] == 0


def test_errors_are_relative_to_the_mean_face(images: Tensor) -> None:
    assert float(relative_error(images, images)) == 0
    assert float(relative_error(images.mean(0, keepdim=True).expand_as(images), images)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("error", "spread", "verdict"),
    [
        (-1.0, -1.0, "the contest has not begun"),
        (0.4, 0.5, r"neither side has collapsed: the adversary's error is 0\.40"),
        (1.05, 0.5, "the adversary has collapsed or was beaten outright"),
        (0.01, 0.5, "the privatiser hides nothing"),
        (0.4, 0.001, "the privatiser has collapsed"),
    ],
)
def test_a_collapse_is_told(error: float, spread: float, verdict: str) -> None:
    method = small()
    method.client.adversary_error.fill_(error)
    method.client.code_spread.fill_(spread)
    assert re.match(verdict, method.remarks()[0])


def test_the_books_see_codes_that_are_all_alike(images: Tensor) -> None:
    client = small().client
    one = torch.randn((1, 4, 8, 8), generator=drawn())
    client.update_averages(torch.tensor(0.5), one.expand(6, -1, -1, -1))
    assert float(client.code_spread) == 0 and float(client.adversary_error) == 0.5
    client.update_averages(torch.tensor(0.7), torch.randn((6, 4, 8, 8), generator=drawn(1)))
    assert float(client.adversary_error) == pytest.approx(0.51)
    assert float(client.code_spread) == pytest.approx(0.05, abs=0.01)


def test_calibration_settles_the_code(images: Tensor) -> None:
    method = small()
    (stage,) = method.stages()
    stage.calibrate(images, drawn())
    with torch.no_grad():
        code = method.protect(images)["code"]
    assert code.shape == (4, 4, 56, 56)
    assert torch.allclose(code.std(dim=(0, 2, 3)), torch.ones(4), atol=0.01)


def test_an_empty_code_is_refused() -> None:
    with pytest.raises(MethodError, match=r"code_channels: .*greater than or equal to 1"):
        small(code_channels=0)
