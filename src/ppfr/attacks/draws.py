"""Clients whose draws are too many to list: with draws fixed by a seed, and with additive noise averaged out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppfr.attacks.affine import AFFINE_TOLERANCE, as_channels, send
from ppfr.attacks.attacker import Attacker
from ppfr.attacks.priors import FacePrior
from ppfr.errors import AttackError
from ppfr.methods.base import Hypothesis

Apply = Callable[[Tensor], dict[str, Tensor]]

# draws that tell whether noise is additive are compared on so many faces
_FACES = 4
# draws of the mean face that say what the noise is on average
_MEAN_DRAWS = 64


def expected_client(attacker: Attacker, draws: int) -> Hypothesis:
    """What the client sends on average over a few draws, the same for every image; raises AttackError as `client`."""
    return Hypothesis(f"mean of {draws} draws", _mean([attacker.client(draw) for draw in range(draws)]))


def additive_client(attacker: Attacker, prior: FacePrior) -> Hypothesis:
    """The client without its noise, where noise is all that its draws do: it is added, whatever the image.

    Raises AttackError where two draws do not differ by the same for all faces, as where draws permute or mask.
    """
    first, second = (attacker.client(draw) for draw in range(2))
    faces = prior.samples[:_FACES]
    with torch.no_grad():
        sent = [send(Hypothesis("", apply), faces) for apply in (first, second)]
        for name, answer in sent[0].items():
            _check_additive(attacker.target.name, name, as_channels(answer), as_channels(sent[1][name]))
        mean_face = Hypothesis("", _mean([attacker.client(draw) for draw in range(_MEAN_DRAWS)]))
        middle = send(mean_face, prior.mean[None])
        drawn = send(Hypothesis("", first), prior.mean[None])
    shift = {name: (middle[name] - drawn[name]) for name in middle}

    def apply(images: Tensor) -> dict[str, Tensor]:
        return {name: answer + shift[name] for name, answer in first(images).items()}

    return Hypothesis("client without its noise", apply)


def _check_additive(method: str, name: str, first: Tensor, second: Tensor) -> None:
    difference = first.double() - second.double()
    changes = float((difference - difference[:1]).square().mean().sqrt())
    varies = float((first.double() - first[:1].double()).square().mean().sqrt())
    if changes > AFFINE_TOLERANCE * varies:
        raise AttackError(
            f"{method} lists no hypotheses about its client, and its draws do more than add noise: between two draws "
            f"{name!r} changes by {changes / max(varies, 1e-30):.2g} of its variation, differently for each face. "
            "Nothing joins its payloads; use an attack that learns from examples"
        )


def _mean(clients: list[Apply]) -> Apply:
    def apply(images: Tensor) -> dict[str, Tensor]:
        total = clients[0](images)
        for client in clients[1:]:
            total = {name: part + total[name] for name, part in client(images).items()}
        return {name: part / len(clients) for name, part in total.items()}

    return apply
