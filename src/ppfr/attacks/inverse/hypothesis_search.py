"""Which hypothesis about the client holds for each payload, and the images that then explain all payloads best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.attacks.attacker import Progress
from ppfr.attacks.inverse.face_prior import FacePrior, to_images, to_planes
from ppfr.attacks.inverse.gauss_newton import GaussNewton
from ppfr.attacks.inverse.least_squares import Equations, Solver
from ppfr.attacks.inverse.linear_operator import AffineClient, Survey, as_channels, log_energy
from ppfr.attacks.inverse.observations import Observed, joined_hypothesis, joined_names, joined_survey
from ppfr.methods.common.audit_hooks import Hypothesis

# rows held in float64 at once: channels while screening, planes while solving
_CHANNEL_ROWS, _PLANE_ROWS = 8, 64
# a channel's energy is never expected more sharply than this (natural logarithm), however alike typical faces are
_LEAST_SPREAD = 0.05
# a residual beyond this many times the assumed noise means that the hypothesis is wrong, or the noise
_DOUBTFUL = 5.0


@dataclass(frozen=True)
class Effort:
    """How hard to try: see `LinearInversionOptions`."""

    precision: float
    iterations: int
    steps: int
    newton: int


def screen(surveys: Sequence[Survey], names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    """How implausible each hypothesis (H) is for each row (B,H), by the energies of the channels.

    Each channel's energy relative to the others is compared with what typical faces give under the hypothesis.
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


class Search:
    """Explains payloads, `views` of each image, by hypotheses and images.

    Row `view * images + image` of `tensors` is of that image. Each row is taken for what its energies say it is, and
    all rows of an image are solved for together; where that does not explain them, every hypothesis is tried on each
    row alone.
    """

    def __init__(
        self,
        hypotheses: Sequence[Hypothesis],
        surveys: Sequence[Survey],
        prior: FacePrior,
        tensors: Mapping[str, Tensor],
        views: int,
        effort: Effort,
        progress: Progress,
    ) -> None:
        self._hypotheses, self._surveys, self._prior = hypotheses, surveys, prior
        self._tensors, self._views, self._effort, self._progress = tensors, views, effort, progress
        rows = len(next(iter(tensors.values())))
        self._count = rows // views
        self._done, self._quiet = 0, False
        self._kept = [0] * rows
        self.images = _as_images(prior.mean).expand(self._count, -1, -1, -1).clone()
        self.misfit = prior.mean.new_full((self._count,), float("inf"), dtype=torch.float32)

    def names(self) -> tuple[str, ...]:
        """The hypothesis kept for each image, or the different ones of its payloads."""
        kept = [sorted({self._kept[row] for row in self._rows(image)}) for image in range(self._count)]
        return tuple(" + ".join(self._hypotheses[index].name for index in indices) for indices in kept)

    def solve(self, names: Sequence[str], *, quietly: bool = False) -> None:
        """Fill `images` and `misfit` from the tensors in `names`, which are affine in the image."""
        self._quiet = quietly
        self._kept = [int(index) for index in screen(self._surveys, names, self._tensors).argmin(1)]
        doubtful = self._solve_groups(range(self._count), names, limit=_DOUBTFUL)
        if doubtful:
            self._try_all(names, [row for image in doubtful for row in self._rows(image)])
            self._solve_groups(doubtful, names, limit=float("inf"), adapt=True)

    def refine(self, names: Sequence[str], *, try_all: bool) -> None:
        """Descend from `images` on more tensors, those that are not affine among them, through the Jacobian.

        With `try_all` every hypothesis is tried for every payload and the one with the least misfit kept.
        """
        if try_all and len(self._hypotheses) > 1 and self._views > 1:
            self._tell_apart(names)
            try_all = False
        images = range(self._count)
        tries = (
            [((index,) * self._views, list(images)) for index in range(len(self._hypotheses))]
            if try_all
            else list(self._grouped(images))
        )
        start = to_planes(self.images.double() * 2 - 1)
        self.misfit.fill_(float("inf"))
        done, total = 0, sum(len(group) for _, group in tries)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(done, total)

        for kinds, group in tries:
            parts, observed = self._join(kinds, group)
            descent = GaussNewton(
                joined_hypothesis([self._hypotheses[index] for index in parts]),
                joined_names(names, len(parts)),
                joined_survey([self._surveys[index] for index in parts]),
                self._prior,
                steps=self._effort.newton,
                iterations=self._effort.iterations,
                precision=self._effort.precision,
            )
            planes, misfit = descent.solve(observed, start[group], advance)
            better = (misfit < self.misfit[group]).tolist()
            places = [image for image, kept in zip(group, better, strict=True) if kept]
            self.images[places] = _as_images(planes[better])
            self.misfit[places] = misfit[better].float()
            if try_all:
                for image in places:
                    self._kept[image] = kinds[0]

    # --- rows and groups ----------------------------------------------------------------------------------------
    def _rows(self, image: int) -> range:
        """The payloads of an image."""
        return range(image, self._count * self._views, self._count)

    def _grouped(self, images: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """The hypotheses that hold for the payloads of an image, in order, with the images that have the same."""
        kinds = {image: tuple(sorted(self._kept[row] for row in self._rows(image))) for image in images}
        for key in sorted(set(kinds.values())):
            yield key, [image for image in images if kinds[image] == key]

    def _join(self, kinds: Sequence[int], images: Sequence[int]) -> tuple[list[int], Observed]:
        """The different hypotheses among `kinds`, and the payloads of images of which each of them holds for some."""
        parts = sorted(set(kinds))
        members = []
        for image in images:
            rows = sorted(self._rows(image), key=lambda row: self._kept[row])
            members.append([[row for row, kind in zip(rows, kinds, strict=True) if kind == part] for part in parts])
        return parts, Observed(self._tensors, members)

    # --- linear -------------------------------------------------------------------------------------------------
    def _solve_groups(
        self, images: Sequence[int], names: Sequence[str], *, limit: float, adapt: bool = False
    ) -> list[int]:
        """Solve images under the hypotheses kept; returns those whose residual is beyond `limit` noises."""
        refused: list[int] = []
        pool: _Pool | None = None
        for kinds, group in self._grouped(images):
            parts, observed = self._join(kinds, group)
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
            pool.add(places, equations.right[kept], equations.start[kept])
        if pool is not None:
            self._finish(pool)
        return refused

    def _try_all(self, names: Sequence[str], rows: Sequence[int]) -> None:
        """Keep the hypothesis that explains each row best, the row taken alone."""
        if len(self._hypotheses) == 1:
            return
        alone = Observed.single(self._tensors, rows)
        misfits = [self._equations([index], alone, names, False, None).misfit for index in range(len(self._hypotheses))]
        for row, best in zip(rows, torch.stack(misfits).argmin(0).tolist(), strict=True):
            self._kept[row] = best

    def _equations(
        self, parts: Sequence[int], observed: Observed, names: Sequence[str], adapt: bool, known: Solver | None
    ) -> Equations:
        hypothesis = joined_hypothesis([self._hypotheses[index] for index in parts])
        return Equations(
            AffineClient(hypothesis, joined_names(names, len(parts)), self._prior.mean),
            joined_survey([self._surveys[index] for index in parts]),
            observed,
            self._prior,
            precision=self._effort.precision,
            iterations=self._effort.iterations,
            # payloads taken for those of another hypothesis differ, too: that is no noise
            spread=adapt or len(self._hypotheses) == 1,
            adapt=adapt,
            known=known,
        )

    def _finish(self, pool: _Pool) -> None:
        rights, starts = torch.cat(pool.rights), torch.cat(pool.starts)
        for part in torch.split(torch.arange(len(rights)), _PLANE_ROWS):
            places = [pool.places[position] for position in part.tolist()]
            planes = pool.solver.sharpen(rights[part], starts[part], self._effort.steps)
            self.images[places] = _as_images(planes)
            self._done += len(places)
            if not self._quiet:
                self._progress(self._done, self._count)

    # --- not linear ---------------------------------------------------------------------------------------------
    def _tell_apart(self, names: Sequence[str]) -> None:
        """Find the hypothesis of each payload alone, and start from the mean of what they give of an image."""
        alone = Search(
            self._hypotheses, self._surveys, self._prior, self._tensors, 1, self._effort, lambda done, total: None
        )
        alone.refine(names, try_all=True)
        self._kept = alone._kept
        self.images = alone.images.view(self._views, *self.images.shape).mean(0)


class _Pool:
    """Images that share a solver, so that its factors are read once for all of them."""

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
