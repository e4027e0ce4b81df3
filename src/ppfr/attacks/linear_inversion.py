"""Faces from payloads of clients that are linear given their secrets: regularised least squares, no training at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from ppfr.attacks.affine import AffineClient, Survey, affine_tensors, as_channels, log_energy, survey
from ppfr.attacks.base import Attack, AttackOptions, Has, Knows, Progress, Recovery, Sees, ThreatModel, register
from ppfr.attacks.equations import Equations, Solver
from ppfr.attacks.priors import FacePrior, faces_prior, smooth_prior, to_images
from ppfr.methods.base import Hypothesis, Method
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


@register
class LinearInversion(Attack):
    """The most probable image under the client's linear operator A, for a payload y.

    Minimises |A x - y|^2 / (2 noise^2) + |x - mean face|^2 / (2 spread^2) + |edges of x| / usual edge over images x in
    the valid range, for the hypothesis about the client's draws that explains y best. The noise is `precision` of each
    channel's usual strength, plus that of a quantiser where values lie on a grid; it is raised where no hypothesis
    explains y that well. Total variation (Rudin, Osher and
    Fatemi, Physica D 1992) settles what A does not see; for block-DCT channels without low frequencies that is the mean
    of each row and each column. Mean face, spread and usual edge come from public faces, or from constants without.
    Tensors of the payload that are not affine in the image are left aside.
    """

    name = "linear-inversion"
    title = "Linear inversion"
    Options = LinearInversionOptions
    options: LinearInversionOptions

    def needs(self, target: Method, faces: Tensor | None) -> ThreatModel:
        return ThreatModel(
            sees=Sees.PAYLOAD,
            knows=Knows.SECRETS if target.info.secrets else Knows.PARAMETERS,
            has=frozenset() if faces is None else frozenset({Has.FACES}),
        )

    @torch.no_grad()
    def recover(self, target: Method, payload: Payload, faces: Tensor | None, progress: Progress) -> Recovery:
        device = next(iter(payload.tensors.values())).device
        prior = smooth_prior(target.input_size, device) if faces is None else faces_prior(faces.to(device))
        hypotheses = target.hypotheses()
        surveys = [survey(hypothesis, prior) for hypothesis in hypotheses]
        names = affine_tensors(surveys, target.info.name, hypotheses)
        search = _Search(hypotheses, surveys, names, prior, payload, self.options, progress)
        search.run(screen(surveys, names, payload))
        unused = sorted(payload.tensors.keys() - set(names))
        return Recovery(
            images=search.images,
            hypotheses=tuple(hypotheses[index].name for index in search.kept),
            misfit=search.misfit,
            tensors=names,
            prior=prior.description,
            notes={"not linear in the image, not used": ", ".join(unused)} if unused else {},
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
        self._done = 0
        self.images = prior.mean.new_empty((len(payload), *prior.mean.shape), dtype=torch.float32)
        self.misfit = prior.mean.new_empty(len(payload), dtype=torch.float32)
        self.kept = [0] * len(payload)

    def run(self, likely: Sequence[int]) -> None:
        """Fill `images`, `misfit` and `kept`, given the most plausible hypothesis of each row."""
        doubtful = self._solve(_grouped(likely, range(len(likely))), limit=_DOUBTFUL)
        if not doubtful:
            return
        indices = range(len(self._hypotheses))
        misfits = torch.stack([self._equations(index, doubtful).misfit for index in indices])
        best = [int(index) for index in misfits.argmin(0)]
        self._solve(_grouped(best, doubtful), limit=float("inf"), adapt=True)

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
            self.images[places] = (to_images(planes) / 2 + 0.5).clamp(0, 1).float()
            self._done += len(places)
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


def _grouped(keys: Sequence[int], rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Each key, in order, with the rows that have it."""
    for key in sorted(set(keys)):
        yield key, [row for row, own in zip(rows, keys, strict=True) if own == key]
