"""Clients whose draws are too many to list: with draws fixed by a seed, and with additive noise averaged out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.inverse.face_prior import FacePrior
from ppfr.attacks.inverse.gauss_newton import require_gradients
from ppfr.attacks.inverse.linear_operator import AFFINE_TOLERANCE, send
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.util.errors import AttackError

Apply = Callable[[Tensor], dict[str, Tensor]]

# draws that tell whether noise is additive are compared on so many faces
_FACES = 4
# draws of the mean face that say what the noise is on average
_MEAN_DRAWS = 64


def expected_client(attacker: Attacker, prior: FacePrior, draws: int) -> Hypothesis:
    """The client without its noise where noise is all that its draws do, else what it sends on average over `draws`.

    Raises AttackError where no gradient reaches the image.
    """
    if _draws_differ(attacker, prior) is None:
        return _without_noise(attacker, prior)
    return Hypothesis(f"mean of {draws} draws", _mean([attacker.client(draw) for draw in range(draws)]))


def additive_client(attacker: Attacker, prior: FacePrior) -> Hypothesis:
    """The client without its noise, where noise is all that its draws do: it is added, whatever the image.

    Raises AttackError where two draws do not differ by the same for all faces, as where draws permute or mask, and
    where no gradient reaches the image.
    """
    found = _draws_differ(attacker, prior)
    if found is not None:
        name, share = found
        raise AttackError(
            f"{attacker.target.name} lists no hypotheses about its client, and its draws do more than add noise: "
            f"between two draws {name!r} changes by {share:.2g} of its variation, differently for each face. Nothing "
            "joins its payloads; use an attack that learns from examples"
        )
    return _without_noise(attacker, prior)


@torch.no_grad()
def _draws_differ(attacker: Attacker, prior: FacePrior) -> tuple[str, float] | None:
    """The first tensor whose difference between two draws depends on the face, and by how much of its variation."""
    first, second = (Hypothesis(f"draw {draw}", attacker.client(draw)) for draw in range(2))
    # first of all, for one pass of some clients takes seconds
    require_gradients(attacker.target.name, first, prior, list(attacker.schema.tensors))
    faces = prior.samples[:_FACES]
    one, two = send(first, faces), send(second, faces)
    for name, answer in one.items():
        change, variation = _spread(answer.double() - two[name].double()), _spread(answer.double())
        if change > AFFINE_TOLERANCE * variation:
            return name, change / max(variation, 1e-30)
    return None


def _spread(answers: Tensor) -> float:
    return float((answers - answers[:1]).square().mean().sqrt())


@torch.no_grad()
def _without_noise(attacker: Attacker, prior: FacePrior) -> Hypothesis:
    first = attacker.client(0)
    mean_face = prior.mean[None]
    drawn = send(Hypothesis("first draw", first), mean_face)
    usual = send(Hypothesis("usual draw", _mean([attacker.client(draw) for draw in range(_MEAN_DRAWS)])), mean_face)
    shift = {name: usual[name] - drawn[name] for name in drawn}

    def apply(images: Tensor) -> dict[str, Tensor]:
        return {name: answer + shift[name] for name, answer in first(images).items()}

    return Hypothesis("client without its noise", apply)


def _mean(clients: list[Apply]) -> Apply:
    def apply(images: Tensor) -> dict[str, Tensor]:
        total = clients[0](images)
        for client in clients[1:]:
            total = {name: part + total[name] for name, part in client(images).items()}
        return {name: part / len(clients) for name, part in total.items()}

    return apply
