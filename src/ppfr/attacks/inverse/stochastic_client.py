"""Stochastic clients as one deterministic forward operator: without their additive noise, or averaged over draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppfr.attacks.inverse.face_prior import FacePrior
from ppfr.attacks.inverse.gauss_newton import require_gradients
from ppfr.attacks.inverse.linear_operator import AFFINE_TOLERANCE, send
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.util.errors import AttackError

Apply = Callable[[Tensor], dict[str, Tensor]]

# faces on which two draws are compared to see whether noise is additive
_FACES = 4
# draws that the mean of the noise is estimated from
_MEAN_DRAWS = 64


class StochasticClient:
    """A client whose draws are too many to list.

    `draw` gives the client with its draws fixed by a number; `tensors` are the names of what it sends, and `method` is
    named in errors.
    """

    def __init__(self, method: str, tensors: Sequence[str], draw: Callable[[int], Apply], prior: FacePrior) -> None:
        self._method, self._tensors, self._draw, self._prior = method, tensors, draw, prior

    def expected(self, draws: int) -> Hypothesis:
        """The client without its noise where all its randomness is additive noise, else its mean over `draws` draws.

        Raises AttackError where the payload has no gradient with respect to the image.
        """
        if self._draws_differ() is None:
            return self._without_noise()
        return Hypothesis(f"mean of {draws} draws", self._mean(draws))

    def without_noise(self) -> Hypothesis:
        """The client without its noise, where all its randomness is noise that does not depend on the image.

        Raises AttackError where the difference between two draws depends on the face, as where draws permute or mask,
        and where the payload has no gradient with respect to the image.
        """
        found = self._draws_differ()
        if found is not None:
            name, share = found
            raise AttackError(
                f"{self._method} lists no hypotheses about its client, and its draws do more than add noise: "
                f"between two draws {name!r} changes by {share:.2g} of its variation, differently for each face. "
                "Nothing joins its payloads; use an attack that learns from examples"
            )
        return self._without_noise()

    @torch.no_grad()
    def _draws_differ(self) -> tuple[str, float] | None:
        """The first tensor whose difference between two draws depends on the face, and its share of the variation."""
        first, second = (Hypothesis(f"draw {draw}", self._draw(draw)) for draw in range(2))
        # checked first, because one pass of some clients takes seconds
        require_gradients(self._method, first, self._prior, self._tensors)
        faces = self._prior.samples[:_FACES]
        one, two = send(first, faces), send(second, faces)
        for name, answer in one.items():
            change, variation = _spread(answer.double() - two[name].double()), _spread(answer.double())
            if change > AFFINE_TOLERANCE * variation:
                return name, change / max(variation, 1e-30)
        return None

    @torch.no_grad()
    def _without_noise(self) -> Hypothesis:
        first = self._draw(0)
        mean_face = self._prior.mean[None]
        drawn = send(Hypothesis("first draw", first), mean_face)
        mean = send(Hypothesis("mean draw", self._mean(_MEAN_DRAWS)), mean_face)
        shift = {name: mean[name] - drawn[name] for name in drawn}

        def apply(images: Tensor) -> dict[str, Tensor]:
            return {name: answer + shift[name] for name, answer in first(images).items()}

        return Hypothesis("client without its noise", apply)

    def _mean(self, draws: int) -> Apply:
        clients = [self._draw(draw) for draw in range(draws)]

        def apply(images: Tensor) -> dict[str, Tensor]:
            total = clients[0](images)
            for client in clients[1:]:
                total = {name: part + total[name] for name, part in client(images).items()}
            return {name: part / len(clients) for name, part in total.items()}

        return apply


def _spread(answers: Tensor) -> float:
    return float((answers - answers[:1]).square().mean().sqrt())
