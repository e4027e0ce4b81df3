"""Faces from payloads by regularised least squares through the client, linear or linearised: no training at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ppfr.attacks.affine import (
    AFFINE_TOLERANCE,
    AffineClient,
    Survey,
    affine_tensors,
    as_channels,
    log_energy,
    survey,
    tell_anything,
)
from ppfr.attacks.attacker import Attacker, Progress, client_knowledge
from ppfr.attacks.base import AttackOptions, Recovery, RecoveryAttack, register
from ppfr.attacks.equations import Equations, Solver
from ppfr.attacks.newton import GaussNewton, curved_tensors
from ppfr.attacks.priors import FacePrior, faces_prior, smooth_prior, to_images, to_planes
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.errors import AttackError
from ppfr.methods.base import Hypothesis, MethodInfo
from ppfr.methods.payload import Payload

# rows held in float64 at once: channels while screening, planes while solving
_CHANNEL_ROWS, _PLANE_ROWS = 8, 64
# a channel's energy is never expected more sharply than this (natural logarithm), however alike typical faces are
_LEAST_SPREAD = 0.05
# a residual beyond this many times the assumed noise means that the hypothesis is wrong, or the noise
_DOUBTFUL = 5.0


class LinearInversionOptions(AttackOptions):
    """Settings of linear inversion."""

    steps: int = Field(30, description="steps that add edges and valid range to the least squares", ge=0)
    precision: float = Field(
        1e-4, description="assumed noise of a channel, as a fraction of its usual root mean square", gt=0
    )
    iterations: int = Field(30, description="conjugate gradient iterations a step, if the client is not local", ge=1)
    tensors: Literal["affine", "all"] = Field(
        "affine", description="use those affine in the image, if there are any, or all that are differentiable"
    )
    newton: int = Field(16, description="Gauss-Newton steps for tensors that are not affine", ge=1)


@register
class LinearInversion(RecoveryAttack):
    """The most probable image under the client's linear operator A, for a payload y.

    Minimises |A x - y|^2 / (2 noise^2) + |x - mean face|^2 / (2 spread^2) + |edges of x| / usual edge over images x in
    the valid range, for the hypothesis about the client's draws that explains y best. The noise is `precision` of each
    channel's usual strength, plus that of a quantiser where values lie on a grid; it is raised where no hypothesis
    explains y that well. Total variation (Rudin, Osher and
    Fatemi, Physica D 1992) settles what A does not see; for block-DCT channels without low frequencies that is the mean
    of each row and each column. Mean face, spread and usual edge come from public faces, or from constants without.
    Where no tensor of the payload is affine in the image, or `tensors` is "all", those that are differentiable are used
    through the client's Jacobian (Gauss-Newton); the rest is left aside.
    """

    name = "linear-inversion"
    title = "Linear inversion"
    Options = LinearInversionOptions
    options: LinearInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(sees=Sees.PAYLOAD, knows=client_knowledge(target), has=holds & {Has.FACES})

    @torch.no_grad()
    def recover(self, attacker: Attacker, payload: Payload) -> Recovery:
        name = attacker.target.name
        device = next(iter(payload.tensors.values())).device
        prior = (
            faces_prior(attacker.faces.images.to(device))
            if Has.FACES in attacker.holds
            else smooth_prior(attacker.input_size, device)
        )
        hypotheses = attacker.hypotheses()
        if not hypotheses:
            raise AttackError(
                f"{name} names no hypothesis about its client: its draws are too many to try, and linear "
                "inversion needs a client with every draw fixed. Use an attack that learns from examples"
            )
        surveys = [survey(hypothesis, prior) for hypothesis in hypotheses]
        affine = affine_tensors(surveys)
        linear = tell_anything(surveys, affine)
        others = [name for name in surveys[0].deviation if name not in affine]
        curved: tuple[str, ...] = ()
        if others and (self.options.tensors == "all" or not linear):
            curved = curved_tensors(hypotheses[0], prior, others)
            if not curved and not linear:
                raise AttackError(_neither_linear_nor_smooth(name, hypotheses[0], surveys[0]))
        search = _Search(hypotheses, surveys, affine, prior, payload, self.options, attacker.progress)
        if not curved:
            search.run(screen(surveys, affine, payload))
        else:
            if linear:
                search.run(screen(surveys, affine, payload), quietly=True)
            search.refine(affine + curved, try_all=not linear)
        used = affine + curved
        unused = ", ".join(sorted(payload.tensors.keys() - set(used)))
        return Recovery(
            images=search.images,
            hypotheses=tuple(hypotheses[index].name for index in search.kept),
            misfit=search.misfit,
            tensors=used,
            prior=prior.description,
            notes={
                **({"not linear in the image, not used": unused} if unused else {}),
                **({"not linear in the image, used through the Jacobian": ", ".join(curved)} if curved else {}),
            },
        )


def _neither_linear_nor_smooth(method: str, hypothesis: Hypothesis, found: Survey) -> str:
    far = {name: value for name, value in found.deviation.items() if value > AFFINE_TOLERANCE}
    shares = ", ".join(f"{name!r} by {value:.2g}" for name, value in far.items())
    return (
        f"{method} is neither linear given its secrets nor differentiable: under hypothesis {hypothesis.name!r} its "
        f"payload deviates from affine in the image, {shares} of its variation (rounding stays below "
        f"{AFFINE_TOLERANCE:g}; inf is for tensors not of floats), and no gradient reaches the image. Write hypotheses "
        "that give the values before rounding, or use an attack that learns from examples"
    )


def screen(surveys: Sequence[Survey], names: Sequence[str], payload: Payload) -> list[int]:
    """The most plausible hypothesis for each row, by the energies of the channels.

    Each channel's energy relative to the others is compared with what typical faces give under the hypothesis.
    """
    if len(surveys) == 1:
        return [0] * len(payload)
    scores = torch.zeros(len(payload), len(surveys), dtype=torch.float64)
    for index, found in enumerate(surveys):
        for name in names:
            rows = torch.split(payload[name], _CHANNEL_ROWS)
            energies = torch.cat([log_energy(as_channels(part) - found.average[name]) for part in rows])
            expected, spread = found.profile[name].mean(0), found.profile[name].std(0).clamp_min(_LEAST_SPREAD)
            scores[:, index] += ((energies - expected) / spread).square().sum(1).cpu()
    return [int(index) for index in scores.argmin(1)]


class _Search:
    """Solves each row under its most plausible hypothesis, and under all of them where that one does not explain it."""

    def __init__(
        self,
        hypotheses: Sequence[Hypothesis],
        surveys: Sequence[Survey],
        names: Sequence[str],
        prior: FacePrior,
        payload: Payload,
        options: LinearInversionOptions,
        progress: Progress,
    ) -> None:
        self._hypotheses, self._surveys, self._names = hypotheses, surveys, names
        self._prior, self._payload, self._options, self._progress = prior, payload, options, progress
        self._done, self._quiet = 0, False
        self.images = _as_images(prior.mean).expand(len(payload), -1, -1, -1).clone()
        self.misfit = prior.mean.new_full((len(payload),), float("inf"), dtype=torch.float32)
        self.kept = [0] * len(payload)

    def run(self, likely: Sequence[int], *, quietly: bool = False) -> None:
        """Fill `images`, `misfit` and `kept`, given the most plausible hypothesis of each row."""
        self._quiet = quietly
        doubtful = self._solve(_grouped(likely, range(len(likely))), limit=_DOUBTFUL)
        if not doubtful:
            return
        indices = range(len(self._hypotheses))
        misfits = torch.stack([self._equations(index, doubtful).misfit for index in indices])
        best = [int(index) for index in misfits.argmin(0)]
        self._solve(_grouped(best, doubtful), limit=float("inf"), adapt=True)

    def refine(self, names: Sequence[str], *, try_all: bool) -> None:
        """Descend from `images` on more tensors, those that are not affine among them, through the Jacobian.

        With `try_all` every hypothesis is tried for every row and the one with the least misfit kept.
        """
        rows = range(len(self.kept))
        indices = range(len(self._hypotheses))
        tries = [(index, list(rows)) for index in indices] if try_all else list(_grouped(self.kept, rows))
        start = to_planes(self.images.double() * 2 - 1)
        self.misfit.fill_(float("inf"))
        done, total = 0, sum(len(group) for _, group in tries)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(done, total)

        for index, group in tries:
            descent = GaussNewton(
                self._hypotheses[index],
                names,
                self._surveys[index],
                self._prior,
                steps=self._options.newton,
                iterations=self._options.iterations,
                precision=self._options.precision,
            )
            planes, misfit = descent.solve(self._payload, group, start[group], advance)
            better = misfit < self.misfit[group]
            places = [row for row, kept in zip(group, better.tolist(), strict=True) if kept]
            self.images[places] = _as_images(planes[better])
            self.misfit[places] = misfit[better].float()
            for place in places:
                self.kept[place] = index

    def _solve(self, groups: Iterable[tuple[int, list[int]]], *, limit: float, adapt: bool = False) -> list[int]:
        """Solve groups of rows, each under its hypothesis; returns the rows whose residual is beyond `limit` noises."""
        refused: list[int] = []
        pool: _Pool | None = None
        for index, rows in groups:
            equations = self._equations(index, rows, adapt=adapt, known=None if pool is None else pool.solver)
            if pool is not None and equations.solver is not pool.solver:
                self._finish(pool)
                pool = None
            kept = equations.noise_ratio <= limit
            refused += [rows[position] for position in (~kept).nonzero().flatten().tolist()]
            places = [rows[position] for position in kept.nonzero().flatten().tolist()]
            if not places:
                continue
            for place in places:
                self.kept[place] = index
            self.misfit[places] = equations.misfit[kept].float()
            pool = pool or _Pool(equations.solver)
            pool.add(places, equations.right[kept], equations.start[kept])
        if pool is not None:
            self._finish(pool)
        return refused

    def _equations(
        self, index: int, rows: Sequence[int], *, adapt: bool = False, known: Solver | None = None
    ) -> Equations:
        return Equations(
            AffineClient(self._hypotheses[index], self._names, self._prior.mean),
            self._surveys[index],
            self._payload,
            rows,
            self._prior,
            precision=self._options.precision,
            iterations=self._options.iterations,
            adapt=adapt,
            known=known,
        )

    def _finish(self, pool: _Pool) -> None:
        rights, starts = torch.cat(pool.rights), torch.cat(pool.starts)
        for part in torch.split(torch.arange(len(rights)), _PLANE_ROWS):
            places = [pool.places[position] for position in part.tolist()]
            planes = pool.solver.sharpen(rights[part], starts[part], self._options.steps)
            self.images[places] = _as_images(planes)
            self._done += len(places)
            if not self._quiet:
                self._progress(self._done, len(self.kept))


class _Pool:
    """Rows that share a solver, so that its factors are read once for all of them."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.places: list[int] = []
        self.rights: list[Tensor] = []
        self.starts: list[Tensor] = []

    def add(self, places: Sequence[int], rights: Tensor, starts: Tensor) -> None:
        self.places += places
        self.rights.append(rights)
        self.starts.append(starts)


def _as_images(planes: Tensor) -> Tensor:
    return (to_images(planes) / 2 + 0.5).clamp(0, 1).float()


def _grouped(keys: Sequence[int], rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Each key, in order, with the rows that have it."""
    for key in sorted(set(keys)):
        yield key, [row for row, own in zip(rows, keys, strict=True) if own == key]
