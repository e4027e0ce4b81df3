"""Gauss-Newton with Levenberg-Marquardt damping: MAP estimates of images through a differentiable client's Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppfr.attacks.inverse.banded_solver import Factor, LocalSystem, conjugate_gradients
from ppfr.attacks.inverse.face_prior import FacePrior, clamp_planes, divergence, gradients
from ppfr.attacks.inverse.least_squares import RANGE_TIE, channel_noise, pixel_weights
from ppfr.attacks.inverse.linear_operator import Survey, send, send_channels
from ppfr.attacks.inverse.observations import Observed
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.util.errors import AttackError

# images whose graphs are held at once
_CHUNK = 4
# noise is first taken to be this share of a channel's strength, and this much of the step before from then on
_FIRST_NOISE, _NOISE_FALL = 0.3, 0.4
# a step is shortened by a stiffness of this share of the client's own, more after a step that failed
_FIRST_DAMPING, _DAMPING_RISE, _DAMPING_FALL = 0.01, 10.0, 0.3
_TOLERANCE = 1e-3


def differentiable_tensors(hypothesis: Hypothesis, prior: FacePrior, names: Sequence[str]) -> tuple[str, ...]:
    """Of the tensors in `names` those whose derivative by the image exists and is not zero at the mean face."""
    with torch.enable_grad():
        planes = prior.mean[None].clone().requires_grad_()
        sent = send(hypothesis, planes)
        return tuple(
            name
            for name in names
            if sent[name].requires_grad
            and bool(torch.autograd.grad(sent[name].sum(), planes, retain_graph=True)[0].any())
        )


def require_gradients(method: str, hypothesis: Hypothesis, prior: FacePrior, names: Sequence[str]) -> tuple[str, ...]:
    """The `differentiable_tensors` of a method's client; raises AttackError where there are none."""
    found = differentiable_tensors(hypothesis, prior, names)
    if not found:
        raise AttackError(
            f"{method} is not differentiable: under hypothesis {hypothesis.name!r} no gradient of its payload reaches "
            "the image. Write hypotheses that give the values before rounding, or use an attack that learns from "
            "examples"
        )
    return found


class Linearised:
    """The linearisation of a client at some images: its output there, and products with its Jacobian J.

    Both products come from one recorded pass: J^T w by automatic differentiation, J v by differentiating J^T w, which
    is linear in w, once more.
    """

    def __init__(self, hypothesis: Hypothesis, names: Sequence[str], planes: Tensor) -> None:
        with torch.enable_grad():
            self._planes = planes.clone().requires_grad_()
            self._answers = send_channels(hypothesis, names, self._planes)
            self._probes = [torch.zeros_like(answer, requires_grad=True) for answer in self._answers]
            (self._pulled,) = torch.autograd.grad(self._answers, self._planes, self._probes, create_graph=True)
        self.channels = [answer.detach() for answer in self._answers]

    def forward(self, planes: Tensor) -> list[Tensor]:
        """J times planes (B,3,H,W), a list of channels (B,C,N)."""
        found = torch.autograd.grad(self._pulled, self._probes, planes, retain_graph=True, materialize_grads=True)
        return list(found)

    def adjoint(self, channels: Sequence[Tensor]) -> Tensor:
        """J^T times channels, planes (B,3,H,W)."""
        return torch.autograd.grad(self._answers, self._planes, list(channels), retain_graph=True)[0]


class GaussNewton:
    """MAP estimates of the images behind some payloads, under one hypothesis about the client.

    Minimises the objective of linear inversion with Charbonnier-smoothed total variation. Each step solves the damped
    normal equations of the linearised client by conjugate gradients (Levenberg 1944, Marquardt 1963), with total
    variation as iteratively reweighted squares (Vogel and Oman, SIAM J. Sci. Comput. 1996). The assumed noise begins at
    30 % of each channel's usual strength and falls step by step, so that coarse structure converges before fine.
    `names` are the tensors to use.
    """

    def __init__(
        self,
        hypothesis: Hypothesis,
        names: Sequence[str],
        found: Survey,
        prior: FacePrior,
        *,
        steps: int,
        iterations: int,
        precision: float,
    ) -> None:
        self._hypothesis, self._names, self._found, self._prior = hypothesis, tuple(names), found, prior
        self._steps, self._iterations, self._precision = steps, iterations, precision

    def solve(
        self, observed: Observed, start: Tensor, progress: Callable[[int], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Planes (B,3,H,W) of all observed images, from `start`, and their misfit (B,) as defined by `Recovery`."""
        planes, misfits = [], []
        for first in range(0, len(observed), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            seen = [observed.channels(name, chunk).double() for name in self._names]
            noise = [
                channel_noise(self._found, name, 0.0, observed.noise(name, chunk, spread=True)) for name in self._names
            ]
            part = self._descend(seen, noise, start[chunk])
            planes.append(clamp_planes(part))
            misfits.append(self._misfit(seen, noise, planes[-1]))
            if progress is not None:
                progress(len(part))
        return torch.cat(planes), torch.cat(misfits)

    def _descend(self, observed: list[Tensor], quantised: list[Tensor], planes: Tensor) -> Tensor:
        damping = planes.new_full((len(planes), 1, 1, 1), _FIRST_DAMPING)
        for step in range(self._steps):
            weights = self._weights(quantised, max(self._precision, _FIRST_NOISE * _NOISE_FALL**step))
            client = Linearised(self._hypothesis, self._names, planes)
            residual = [one - two for one, two in zip(observed, client.channels, strict=True)]
            before = self._cost(residual, weights, planes)
            trial = planes + self._step(client, residual, weights, planes, damping)
            residual = [one - two for one, two in zip(observed, self._send(trial), strict=True)]
            after = self._cost(residual, weights, trial)
            better = (after < before)[:, None, None, None]
            planes = torch.where(better, trial, planes)
            damping = torch.where(better, damping * _DAMPING_FALL, damping * _DAMPING_RISE)
        return planes

    def _step(
        self, client: Linearised, residual: list[Tensor], weights: list[Tensor], planes: Tensor, damping: Tensor
    ) -> Tensor:
        prior = self._prior
        mean_weight = pixel_weights(prior)[:, None, None]
        edge_weights = prior.edge_weights(planes)
        pull = mean_weight * (prior.mean - planes) + RANGE_TIE * (clamp_planes(planes) - planes)
        pull -= divergence(*[w * edge for w, edge in zip(edge_weights, gradients(planes), strict=True)])
        right = client.adjoint([w * part for w, part in zip(weights, residual, strict=True)]) + pull
        stiffness = self._stiffness(client, weights, planes)

        def apply(change: Tensor) -> Tensor:
            sent = client.forward(change)
            result = client.adjoint([w * part for w, part in zip(weights, sent, strict=True)])
            result += (mean_weight + RANGE_TIE + damping * stiffness[:, None, None]) * change
            edges = [w * edge for w, edge in zip(edge_weights, gradients(change), strict=True)]
            return result + divergence(*edges)

        factor = self._preconditioner(stiffness)
        return conjugate_gradients(
            apply, right, torch.zeros_like(right), factor.solve, self._iterations, tolerance=_TOLERANCE
        )

    def _weights(self, quantised: list[Tensor], noise: float) -> list[Tensor]:
        """Inverse variances (C,1) of channels; zero for those that never change."""
        return [
            (1 / ((noise * self._found.scale[name]).square() + variance))[:, None]
            for name, variance in zip(self._names, quantised, strict=True)
        ]

    def _stiffness(self, client: Linearised, weights: list[Tensor], planes: Tensor) -> Tensor:
        """Mean diagonal (3,) of J^T W J, estimated with one random sign for each pixel (Hutchinson 1990)."""
        coin = torch.randint(0, 2, planes.shape, generator=torch.Generator().manual_seed(0))
        signs = (2 * coin - 1).to(planes)
        sent = client.forward(signs)
        pulled = client.adjoint([w * part for w, part in zip(weights, sent, strict=True)])
        return (pulled * signs).mean((0, 2, 3)).clamp_min(0)

    def _preconditioner(self, stiffness: Tensor) -> Factor:
        prior = self._prior
        system = LocalSystem(prior.mean, 1)
        for plane in range(3):
            usual = float(prior.gradient[plane])
            system.add(plane, plane, (0, 0), float(pixel_weights(prior)[plane] + RANGE_TIE + stiffness[plane]))
            system.add_smoothness(plane, 1 / usual**2)
        return system.factor()

    def _cost(self, residual: list[Tensor], weights: list[Tensor], planes: Tensor) -> Tensor:
        """The objective for each row (B,)."""
        prior = self._prior
        cost = sum((w * part.square()).sum((1, 2)) for w, part in zip(weights, residual, strict=True)) / 2
        tie = pixel_weights(prior)[:, None, None] * (planes - prior.mean).square()
        out = RANGE_TIE * (planes - clamp_planes(planes)).square()
        return cost + (tie + out).sum((1, 2, 3)) / 2 + prior.total_variation(planes)

    def _misfit(self, observed: list[Tensor], quantised: list[Tensor], planes: Tensor) -> Tensor:
        weights = self._weights(quantised, self._precision)
        left = whole = planes.new_zeros(len(planes))
        for name, seen, sent, weight in zip(self._names, observed, self._send(planes), weights, strict=True):
            left = left + (weight * (seen - sent).square()).sum((1, 2))
            whole = whole + (weight * (seen - self._found.average[name]).square()).sum((1, 2))
        return (left / whole.clamp_min(1e-30)).sqrt()

    @torch.no_grad()
    def _send(self, planes: Tensor) -> list[Tensor]:
        return send_channels(self._hypothesis, self._names, planes)
