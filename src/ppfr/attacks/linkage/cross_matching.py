"""Cross-matching: linking the templates of one person in two deployments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, Result, register
from ppfr.attacks.learned.ridge import fit_map, unit
from ppfr.attacks.metrics import Figure, MetricContext, Truth
from ppfr.attacks.observation import Deployments
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.evaluation.metrics.statistics import Floats, Interval
from ppfr.evaluation.metrics.unlinkability import chance_d_sys, d_sys, d_sys_interval
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError


@dataclass(frozen=True)
class CrossMatch(Result):
    """Templates (B,D) of the first deployment, mapped to the second one's, to compare with its own."""

    per_row = ("templates",)
    templates: Tensor
    deployments: Deployments = field(repr=False)

    def checked(self, rows: int, attacker: Attacker) -> Self:
        expected = (rows, *attacker.schema.tensors["template"].shape)
        if tuple(self.templates.shape) != expected or not bool(torch.isfinite(self.templates).all()):
            raise AttackError(f"templates {tuple(self.templates.shape)}; expected {expected}, all finite")
        return replace(self, templates=self.templates.detach())

    def metrics(self, context: MetricContext) -> list[Figure]:
        return [unlinkability(self, context.truth)]


@register
class CrossMatching(Attack[CrossMatch]):
    """Links templates of two deployments of one method that have different secrets.

    An attacker with public faces enrols each with both deployments and fits a linear map between the templates; without
    faces, or where both deployments share all secrets, templates are compared as they are.
    """

    name = "cross-matching"
    title = "Cross-matching"
    finds_people = False

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(Sees.TEMPLATES, has=frozenset({Has.QUERIES}) | (holds & {Has.FACES}))

    @torch.no_grad()
    def fit(self, attacker: Attacker) -> None:
        self._deployments = attacker.deployments()
        self._map = None
        self._how = "templates compared as they are"
        if self._deployments.alike:
            self._how += "; both deployments share all secrets"
        elif Has.FACES in attacker.threat.has:
            images, generator = attacker.faces.images.to(attacker.device), attacker.generator(1)
            here, there = (unit(self._deployments.enrol(images, generator, second=second)) for second in (False, True))
            self._map = fit_map(here, there)
            self._how = f"a linear map learned from {len(images)} public faces, enrolled with both deployments"

    def run(self, attacker: Attacker, payload: Payload) -> CrossMatch:
        templates = unit(payload["template"])
        if self._map is not None:
            templates = unit(self._map(templates))
        return CrossMatch(templates, self._deployments, notes={"matching": self._how})


def unlinkability(result: CrossMatch, truth: Truth) -> Figure:
    """D_sys of the cosines between cross-matched templates and those of other photos in the second deployment.

    The ceiling is D_sys within the first deployment, where no secret differs; chance is D_sys of as many impostor
    pairs. Raises AttackError where templates of one person are not alike within one deployment.
    """
    gallery, owners = truth.other_photos()
    known = np.isin(owners, truth.people)
    photos, owners = gallery[torch.from_numpy(np.flatnonzero(known))], owners[known]
    generator = torch.Generator(photos.device).manual_seed(truth.seed)
    enrol = result.deployments.enrol
    there = enrol(photos, generator, second=True)
    within = enrol(truth.originals, generator, second=False), enrol(photos, generator, second=False)
    first, second = (grid.ravel() for grid in np.broadcast_arrays(truth.people[:, None], owners))
    scores, most = _cosines(result.templates, there), _cosines(*within)
    same = first == second

    def measured(values: Floats) -> tuple[float, Interval]:
        interval = d_sys_interval(values, same, (first, second), seed=truth.seed)
        return d_sys(values[same], values[~same]), interval

    chance = chance_d_sys(most, (first, second), seed=truth.seed)
    if d_sys(most[same], most[~same]) <= chance:
        raise AttackError("templates of one person are not alike even within one deployment: there is nothing to link")
    title = "linkability D_sys of templates across deployments"
    return Figure("d_sys", title, *measured(scores), chance, *measured(most), counts=True)


def _cosines(left: Tensor, right: Tensor) -> Floats:
    found: Floats = (unit(left).double() @ unit(right).double().T).cpu().numpy().ravel()
    return found
