"""Regularised normal equations of affine clients, and their solution with total variation and range constraints."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppfr.attacks.inverse.banded_solver import Factor, LocalOperator, LocalSystem, conjugate_gradients
from ppfr.attacks.inverse.face_prior import FacePrior, clamp_planes, divergence, gradients
from ppfr.attacks.inverse.linear_operator import AffineClient, Survey
from ppfr.attacks.inverse.observations import Observed

# rows whose channels are held in float64 at once
_CHUNK = 8
# neighbouring pixels are correlated: ten count as one observation of the mean face
PIXEL_SHARE = 0.1
# stiffness, per squared grey level, of the tie between an image and its copy inside the valid range
RANGE_TIE = 2e-3
# an edge is pulled to zero by at most this share of a usual edge in one step
_EDGE_STEP = 0.5
_OVER_RELAXATION = 1.6
# images that move by less than this in a step, in grey levels, have arrived
_STILL = 0.01
# where no hypothesis explains a payload, noise is measured in so many rounds, starting from this share of the signal
_ADAPTATIONS, _FIRST_NOISE = 3, 0.1


class Solver:
    """Solves regularised normal equations A^T W A + R for one client A and its channels' inverse variances W.

    Where every channel depends on near neighbours only, as after a block DCT, by a banded Cholesky factorisation; else
    by at most `iterations` of preconditioned conjugate gradients. `known` is reused where its matrix is the same, as
    for clients that differ in the order of their channels.
    """

    def __init__(
        self,
        client: AffineClient,
        weights: list[Tensor],
        prior: FacePrior,
        iterations: int,
        known: Solver | None,
    ) -> None:
        self.prior = prior
        self.edge_steps = _EDGE_STEP * prior.gradient
        self.edge_stiffness = 1 / (prior.gradient * self.edge_steps)
        self._client, self._weights, self._iterations = client, weights, iterations
        self._channels = sum(len(weight) for weight in weights)
        self._operator = self._probe()
        self._regular = self._regularise(LocalSystem(prior.mean, 1))
        self._matrix: LocalSystem = self._approximation()
        alike = known is not None and self._operator is not None and self._matrix.equals(known._matrix)
        self.same_as = known if alike else None
        self._factor: Factor = self.same_as._factor if self.same_as is not None else self._matrix.factor()

    def solve(self, right: Tensor, start: Tensor) -> Tensor:
        """The solution (B,3,H,W) for right-hand sides; iterative solutions begin at `start`."""
        if self._operator is not None:
            return self._factor.solve(right)
        return conjugate_gradients(
            lambda planes: self.adjoint(self._client.forward(planes)) + self._regular.apply(planes),
            right,
            start,
            self._factor.solve,
            self._iterations,
        )

    def adjoint(self, channels: list[Tensor]) -> Tensor:
        """The transpose of the client times the weighted channels: planes (B,3,H,W)."""
        weighted = [weight[:, None] * part for weight, part in zip(self._weights, channels, strict=True)]
        if self._operator is None:
            return self._client.adjoint(weighted)
        return self._operator.adjoint(
            torch.cat(weighted, dim=1).reshape(-1, self._channels, *self.prior.mean.shape[1:])
        )

    def sharpen(self, right: Tensor, start: Tensor, steps: int) -> Tensor:
        """Planes (B,3,H,W) with total variation in place of squared edges, and within the valid range.

        `right` are the right-hand sides and `start` their solutions. Edges and range are split from the least squares
        by over-relaxed ADMM (Boyd et al., 2011, sections 3.4.3 and 6.4.1): each step solves the equations with the
        image pulled towards shrunken edges and clamped pixels. Stops early when images no longer move.
        """
        mean, difference = self.prior.mean, start
        limits = self.edge_steps[:, None, None]
        edges: tuple[Tensor, ...] = gradients(mean + difference)
        edge_duals = tuple(torch.zeros_like(part) for part in edges)
        valid = clamp_planes(mean + difference)
        valid_dual = torch.zeros_like(valid)
        for _ in range(steps):
            wanted = [z - u - m for z, u, m in zip(edges, edge_duals, gradients(mean), strict=True)]
            pull = self.edge_stiffness[:, None, None] * divergence(*wanted)
            pull += RANGE_TIE * (valid - valid_dual - mean)
            previous, difference = difference, self.solve(right + pull, difference)
            if float((difference - previous).abs().mean((1, 2, 3)).max()) < _STILL:
                break
            planes = mean + difference
            moved = [_relax(new, old) + u for new, old, u in zip(gradients(planes), edges, edge_duals, strict=True)]
            edge_duals = tuple(part.clamp(-limits, limits) for part in moved)
            edges = tuple(part - u for part, u in zip(moved, edge_duals, strict=True))
            moved_planes = _relax(planes, valid) + valid_dual
            valid = clamp_planes(moved_planes)
            valid_dual = moved_planes - valid
        return clamp_planes(mean + difference)

    def _probe(self) -> LocalOperator | None:
        """The client as a local operator over one stack of channels, or None if it is not local."""
        size = self.prior.mean.shape[1:]
        if any(constant.shape[2] != size.numel() for constant in self._client.constant):
            return None
        return LocalOperator.probe(
            lambda planes: torch.cat(self._client.forward(planes), dim=1).reshape(-1, self._channels, *size),
            self.prior.mean,
        )

    def _approximation(self) -> LocalSystem:
        """The exact matrix where the client is local; else the regularisation and the mean diagonal of A^T W A."""
        if self._operator is not None:
            return self._regularise(self._operator.gram(torch.cat(self._weights)))
        coin = torch.randint(0, 2, self.prior.mean.shape, generator=torch.Generator().manual_seed(0))
        signs = (2 * coin - 1).to(self.prior.mean)
        system = self._regularise(LocalSystem(self.prior.mean, 1))
        for plane in range(3):
            alone = torch.zeros_like(signs)
            alone[plane] = signs[plane]
            stiffness = self.adjoint(self._client.forward(alone[None]))[0, plane] * signs[plane]
            system.add(plane, plane, (0, 0), float(stiffness.mean().clamp_min(0)))
        return system

    def _regularise(self, system: LocalSystem) -> LocalSystem:
        for plane in range(3):
            system.add(plane, plane, (0, 0), float(pixel_weights(self.prior)[plane]) + RANGE_TIE)
            system.add_smoothness(plane, float(self.edge_stiffness[plane]))
        return system


class NormalEquations:
    """Regularised normal equations for some payloads under one hypothesis, in the difference from the mean face.

    `right` (B,3,H,W) are the right-hand sides and `start` their solutions; `misfit` (B,) is the residual as a fraction
    of the payload's difference from the mean face's, and `noise_ratio` (B,) the residual over the assumed noise:
    `precision` of each channel's usual strength, plus the noise estimated from the payloads (`Observed.noise`, with its
    option `spread`). With `adapt` the assumed noise is raised to that of the residuals. `known` is a solver to reuse
    where its matrix is the same.
    """

    def __init__(
        self,
        client: AffineClient,
        found: Survey,
        observed: Observed,
        prior: FacePrior,
        *,
        precision: float,
        iterations: int,
        spread: bool = False,
        adapt: bool = False,
        known: Solver | None = None,
    ) -> None:
        self._client, self._found, self._observed = client, found, observed
        assumed = [channel_noise(found, name, precision, observed.noise(name, spread=spread)) for name in client.names]
        if not adapt:
            self._fit(assumed, prior, iterations, known)
            return
        # from equal noise on all channels: the strong ones then determine the noise of the weak ones
        strongest = max(float(found.scale[name].max()) for name in client.names)
        residuals = [torch.full_like(variance, (_FIRST_NOISE * strongest) ** 2)[None] for variance in assumed]
        for _ in range(_ADAPTATIONS):
            variances = [torch.maximum(old, new.mean(0)) for old, new in zip(assumed, residuals, strict=True)]
            residuals = self._fit(variances, prior, iterations, None)

    def _fit(self, variances: list[Tensor], prior: FacePrior, iterations: int, known: Solver | None) -> list[Tensor]:
        """Solve with these variances; returns the mean square residual of each row and channel (B,C), by tensor."""
        weights = [1 / variance for variance in variances]
        solver = Solver(self._client, weights, prior, iterations, known)
        self.right = torch.cat([solver.adjoint(self._difference(chunk)) for chunk in self._chunks()])
        self.start = solver.solve(self.right, torch.zeros_like(self.right))
        self.solver = solver if solver.same_as is None else solver.same_as
        left, whole = self._energies()
        values = [
            constant.shape[2] * (weight > 0).double()
            for constant, weight in zip(self._client.constant, weights, strict=True)
        ]
        scaled = torch.cat([weight * count for weight, count in zip(weights, values, strict=True)])
        unexplained, observed = torch.cat(left, dim=1) @ scaled, torch.cat(whole, dim=1) @ scaled
        self.misfit = (unexplained / observed.clamp_min(1e-30)).sqrt()
        self.noise_ratio = (unexplained / torch.cat(values).sum().clamp_min(1)).sqrt()
        return left

    def _chunks(self) -> Iterator[slice]:
        return (slice(first, first + _CHUNK) for first in range(0, len(self._observed), _CHUNK))

    def _difference(self, chunk: slice) -> list[Tensor]:
        """Payloads less that of the mean face, as channels (B,C,N) by tensor."""
        return [self._observed.channels(name, chunk) - self._found.average[name] for name in self._client.names]

    def _energies(self) -> tuple[list[Tensor], list[Tensor]]:
        """Mean squares of residuals and of the payload's difference from the mean face's, (B,C) by tensor."""
        left: list[list[Tensor]] = []
        whole: list[list[Tensor]] = []
        for chunk in self._chunks():
            observed = self._difference(chunk)
            explained = self._client.forward(self.start[chunk])
            whole.append([part.square().mean(2) for part in observed])
            left.append([(one - two).square().mean(2) for one, two in zip(observed, explained, strict=True)])
        return _joined(left), _joined(whole)


def pixel_weights(prior: FacePrior) -> Tensor:
    """Weights (3,) of a pixel's squared distance from the mean face, by plane."""
    return PIXEL_SHARE / prior.deviation.square()


def channel_noise(found: Survey, name: str, precision: float, estimated: Tensor) -> Tensor:
    """Variance (C,) of the noise on each channel of a tensor; infinite for constant channels.

    It is the square of `precision` times a channel's usual strength, plus the variance `estimated` (C,) from payloads.
    """
    scale = found.scale[name]
    noise = (precision * scale).square() + estimated
    return torch.where(scale > 0, noise, torch.full_like(noise, float("inf")))


def _joined(chunks: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _relax(new: Tensor, old: Tensor) -> Tensor:
    return _OVER_RELAXATION * new + (1 - _OVER_RELAXATION) * old
