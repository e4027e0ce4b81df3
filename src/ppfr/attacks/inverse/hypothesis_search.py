"""Joint estimation of images and of the hypothesis about the client that holds for each payload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppfr.attacks.budget import Progress
from ppfr.attacks.inverse.face_prior import FacePrior, to_images, to_planes
from ppfr.attacks.inverse.gauss_newton import GaussNewton
from ppfr.attacks.inverse.least_squares import NormalEquations, Solver
from ppfr.attacks.inverse.linear_operator import AffineClient, Survey, as_channels, log_energy
from ppfr.attacks.inverse.observations import Observed, join
from ppfr.methods.common.audit_hooks import Hypothesis

# rows held in float64 at once: channels while screening, planes while solving
_CHANNEL_ROWS, _PLANE_ROWS = 8, 64
# a channel's energy is never expected more sharply than this (natural logarithm), however alike typical faces are
_LEAST_SPREAD = 0.05
# a residual beyond this many times the assumed noise means that the hypothesis is wrong, or the noise
_DOUBTFUL = 5.0


@dataclass(frozen=True)
class SolverSettings:
    """Assumed noise and numbers of iterations: see `LinearInversionOptions`."""

    precision: float
    iterations: int
    steps: int
    newton: int


def screen(surveys: Sequence[Survey], names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    """Squared distance (B,H) of the channel energies of each row from those expected under each hypothesis.

    Each channel's energy relative to the others is compared with that of typical faces, in standard deviations.
    """
    count = len(next(iter(tensors.values())))
    scores = torch.zeros(count, len(surveys), dtype=torch.float64)
    if len(surveys) == 1:
        return scores
    for index, found in enumerate(surveys):
        for name in names:
            rows = torch.split(tensors[name], _CHANNEL_ROWS)
            energies = torch.cat([log_energy(as_channels(part) - found.average[name]) for part in rows])
            expected, spread = found.profile[name].mean(0), found.profile[name].std(0).clamp_min(_LEAST_SPREAD)
            scores[:, index] += ((energies - expected) / spread).square().sum(1).cpu()
    return scores


class _Assignment:
    """The hypothesis `of` each payload, by row; `per_image` payloads of each of `count` images are solved jointly.

    Row `i * count + image` of `tensors` is the i-th payload of that image.
    """

    def __init__(self, tensors: Mapping[str, Tensor], per_image: int) -> None:
        self.tensors, self.per_image = tensors, per_image
        self.of = [0] * len(next(iter(tensors.values())))
        self.count = len(self.of) // per_image

    def rows(self, image: int) -> range:
        """The payloads of an image."""
        return range(image, len(self.of), self.count)

    def grouped(self, images: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """The hypotheses of an image's payloads, in order, with the images that share them."""
        combinations = {image: tuple(sorted(self.of[row] for row in self.rows(image))) for image in images}
        for combination in sorted(set(combinations.values())):
            yield combination, [image for image in images if combinations[image] == combination]

    def join(self, combination: Sequence[int], images: Sequence[int]) -> tuple[list[int], Observed]:
        """The distinct hypotheses of a combination, and the payloads of images for which it holds."""
        parts = sorted(set(combination))
        members = []
        for image in images:
            rows = sorted(self.rows(image), key=lambda row: self.of[row])
            pairs = list(zip(rows, combination, strict=True))
            members.append([[row for row, index in pairs if index == part] for part in parts])
        return parts, Observed(self.tensors, members)


class HypothesisSearch:
    """Finds the hypothesis about the client that holds for each payload, and the images behind the payloads.

    Each payload is assigned the hypothesis that its channel energies favour, and all payloads of an image are solved
    jointly; where the residual is too large, every hypothesis is tried on each payload alone. `images` (B,3,H,W) in
    [0,1] and `misfit` (B,) hold the estimates.
    """

    def __init__(
        self,
        hypotheses: Sequence[Hypothesis],
        surveys: Sequence[Survey],
        prior: FacePrior,
        tensors: Mapping[str, Tensor],
        per_image: int,
        settings: SolverSettings,
        progress: Progress,
    ) -> None:
        self._hypotheses, self._surveys, self._prior = hypotheses, surveys, prior
        self._settings, self._progress = settings, progress
        self._assigned = _Assignment(tensors, per_image)
        self._done, self._quiet = 0, False
        self.images = _as_images(prior.mean).expand(self._assigned.count, -1, -1, -1).clone()
        self.misfit = prior.mean.new_full((self._assigned.count,), float("inf"), dtype=torch.float32)

    def names(self) -> tuple[str, ...]:
        """The names of the hypotheses assigned to the payloads of each image."""
        kept = [sorted({self._assigned.of[row] for row in self._assigned.rows(i)}) for i in range(self._assigned.count)]
        return tuple(" + ".join(self._hypotheses[index].name for index in indices) for indices in kept)

    def solve(self, names: Sequence[str], *, quietly: bool = False) -> None:
        """Estimate `images` and `misfit` from the tensors in `names`, which are affine in the image."""
        self._quiet = quietly
        self._assigned.of = [int(index) for index in screen(self._surveys, names, self._assigned.tensors).argmin(1)]
        doubtful = self._solve_groups(range(self._assigned.count), names, limit=_DOUBTFUL)
        if doubtful:
            self._try_all(names, [row for image in doubtful for row in self._assigned.rows(image)])
            self._solve_groups(doubtful, names, limit=float("inf"), adapt=True)

    def refine(self, names: Sequence[str], *, try_all: bool) -> None:
        """Continue from `images` by Gauss-Newton on more tensors, including those that are not affine.

        With `try_all` every hypothesis is tried for every payload and the one with the least misfit kept.
        """
        assigned = self._assigned
        if try_all and len(self._hypotheses) > 1 and assigned.per_image > 1:
            self._assign_separately(names)
            try_all = False
        images = range(assigned.count)
        tries = (
            [((index,) * assigned.per_image, list(images)) for index in range(len(self._hypotheses))]
            if try_all
            else list(assigned.grouped(images))
        )
        start = to_planes(self.images.double() * 2 - 1)
        self.misfit.fill_(float("inf"))
        done, total = 0, sum(len(group) for _, group in tries)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(done, total)

        for combination, group in tries:
            parts, observed = assigned.join(combination, group)
            solver = GaussNewton(
                *self._joint(parts, names),
                self._prior,
                steps=self._settings.newton,
                iterations=self._settings.iterations,
                precision=self._settings.precision,
            )
            planes, misfit = solver.solve(observed, start[group], advance)
            better = (misfit < self.misfit[group]).tolist()
            places = [image for image, kept in zip(group, better, strict=True) if kept]
            self.images[places] = _as_images(planes[better])
            self.misfit[places] = misfit[better].float()
            if try_all:
                for image in places:
                    assigned.of[image] = combination[0]

    def _solve_groups(
        self, images: Sequence[int], names: Sequence[str], *, limit: float, adapt: bool = False
    ) -> list[int]:
        """Solve images under the assigned hypotheses; returns those whose residual exceeds `limit` times the noise."""
        refused: list[int] = []
        pool: _Pool | None = None
        for combination, group in self._assigned.grouped(images):
            parts, observed = self._assigned.join(combination, group)
            equations = self._equations(parts, observed, names, adapt, None if pool is None else pool.solver)
            if pool is not None and equations.solver is not pool.solver:
                self._finish(pool)
                pool = None
            kept = equations.noise_ratio <= limit
            refused += [group[position] for position in (~kept).nonzero().flatten().tolist()]
            places = [group[position] for position in kept.nonzero().flatten().tolist()]
            if not places:
                continue
            self.misfit[places] = equations.misfit[kept].float()
            pool = pool or _Pool(equations.solver)
            pool.places += places
            pool.rights.append(equations.right[kept])
            pool.starts.append(equations.start[kept])
        if pool is not None:
            self._finish(pool)
        return refused

    def _try_all(self, names: Sequence[str], rows: Sequence[int]) -> None:
        """Assign to each payload, taken alone, the hypothesis with the least misfit."""
        if len(self._hypotheses) == 1:
            return
        alone = Observed.single(self._assigned.tensors, rows)
        misfits = [self._equations([index], alone, names, False, None).misfit for index in range(len(self._hypotheses))]
        for row, best in zip(rows, torch.stack(misfits).argmin(0).tolist(), strict=True):
            self._assigned.of[row] = best

    def _equations(
        self,
        parts: Sequence[int],
        observed: Observed,
        names: Sequence[str],
        adapt: bool,
        known: Solver | None,
    ) -> NormalEquations:
        hypothesis, joint_names, found = self._joint(parts, names)
        return NormalEquations(
            AffineClient(hypothesis, joint_names, self._prior.mean),
            found,
            observed,
            self._prior,
            precision=self._settings.precision,
            iterations=self._settings.iterations,
            # payloads that were assigned the wrong hypothesis differ, too, which is no noise
            spread=adapt or len(self._hypotheses) == 1,
            adapt=adapt,
            known=known,
        )

    def _joint(self, parts: Sequence[int], names: Sequence[str]) -> tuple[Hypothesis, tuple[str, ...], Survey]:
        return join([self._hypotheses[index] for index in parts], [self._surveys[index] for index in parts], names)

    def _finish(self, pool: _Pool) -> None:
        rights, starts = torch.cat(pool.rights), torch.cat(pool.starts)
        for part in torch.split(torch.arange(len(rights)), _PLANE_ROWS):
            places = [pool.places[position] for position in part.tolist()]
            planes = pool.solver.sharpen(rights[part], starts[part], self._settings.steps)
            self.images[places] = _as_images(planes)
            self._done += len(places)
            if not self._quiet:
                self._progress(self._done, self._assigned.count)

    def _assign_separately(self, names: Sequence[str]) -> None:
        """Assign a hypothesis to each payload alone, and start from the mean of an image's separate estimates."""
        tensors = self._assigned.tensors
        alone = HypothesisSearch(
            self._hypotheses, self._surveys, self._prior, tensors, 1, self._settings, lambda done, total: None
        )
        alone.refine(names, try_all=True)
        self._assigned.of = alone._assigned.of
        self.images = alone.images.view(self._assigned.per_image, *self.images.shape).mean(0)


@dataclass
class _Pool:
    """Images that share a solver, so that its factors are read once for all of them."""

    solver: Solver
    places: list[int] = field(default_factory=list)
    rights: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)


def _as_images(planes: Tensor) -> Tensor:
    return (to_images(planes) / 2 + 0.5).clamp(0, 1).float()
