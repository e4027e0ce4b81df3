"""Linear inversion: MAP estimates of images by regularised least squares through the client, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Recovery, register
from ppfr.attacks.inverse.face_prior import FacePrior, face_prior
from ppfr.attacks.inverse.gauss_newton import differentiable_tensors
from ppfr.attacks.inverse.hypothesis_search import HypothesisSearch, SolverSettings
from ppfr.attacks.inverse.linear_operator import AFFINE_TOLERANCE, Survey, affine_tensors, depends_on_image, survey
from ppfr.attacks.inverse.observations import distinct_payloads
from ppfr.attacks.threat import Has, Sees, ThreatModel, client_knowledge
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError


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
class LinearInversion(Attack[Recovery]):
    """The MAP estimate of the image under the client's linear operator A, for a payload y.

    Minimises |A x - y|^2 / (2 noise^2) + |x - mean face|^2 / (2 deviation^2) + |edges of x| / mean edge over images x
    in the valid range, for the hypothesis about the client's draws with the least residual. The noise is `precision` of
    each channel's usual strength, plus that of a quantiser where values lie on a grid; it is raised where no hypothesis
    fits y that well. Total variation (Rudin, Osher and Fatemi, Physica D 1992) determines the null space of A, which
    for block-DCT channels without low frequencies holds the mean of each row and each column. Mean face, deviation and
    mean edge are those of public faces, or constants without any. Where no tensor of the payload is affine in the
    image, or `tensors` is "all", differentiable ones are used through the client's Jacobian (Gauss-Newton).
    """

    name = "linear-inversion"
    title = "Linear inversion"
    Options = LinearInversionOptions
    profile_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast": {"steps": 10, "newton": 8, "iterations": 15}}
    options: LinearInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(sees=Sees.PAYLOAD, knows=client_knowledge(target), has=holds & {Has.FACES})

    @torch.no_grad()
    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        prior = face_prior(attacker.face_images, attacker.input_size, attacker.device)
        hypotheses = self.candidates(attacker, prior)
        surveys = [survey(hypothesis, prior) for hypothesis in hypotheses]
        affine, curved = self._usable(attacker.target.name, hypotheses, surveys, prior)
        linear = bool(affine)
        tensors, per_image = distinct_payloads(payload.tensors, attacker.payloads_per_image)
        options = self.options
        settings = SolverSettings(options.precision, options.iterations, options.steps, options.newton)
        search = HypothesisSearch(hypotheses, surveys, prior, tensors, per_image, settings, attacker.progress)
        if linear:
            search.solve(affine, quietly=bool(curved))
        if curved:
            search.refine(affine + curved, try_all=not linear)
        used = affine + curved
        constant = set(affine_tensors(surveys)) - set(affine)
        unused = ", ".join(sorted(payload.tensors.keys() - set(used) - constant))
        return Recovery(
            images=search.images,
            hypotheses=search.names(),
            misfit=search.misfit,
            tensors=used,
            prior=prior.description,
            notes={
                **({"not linear in the image, not used": unused} if unused else {}),
                **({"the same for every image, not used": ", ".join(sorted(constant))} if constant else {}),
                **({"not linear in the image, used through the Jacobian": ", ".join(curved)} if curved else {}),
            },
        )

    def candidates(self, attacker: Attacker, prior: FacePrior) -> list[Hypothesis]:
        """Every possible client; raises AttackError where there are too many."""
        hypotheses = attacker.hypotheses()
        if not hypotheses:
            raise AttackError(
                f"{attacker.target.name} names no hypothesis about its client: its draws are too many to try, and "
                "linear inversion needs a client with every draw fixed. Use an attack that learns from examples"
            )
        return hypotheses

    def _usable(
        self, method: str, hypotheses: Sequence[Hypothesis], surveys: Sequence[Survey], prior: FacePrior
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the tensors to use: those affine in the image, and those through the Jacobian.

        Tensors that never change are left out; both are empty where there are no others.
        """
        affine = affine_tensors(surveys)
        others = [name for name in surveys[0].deviation if name not in affine]
        affine = tuple(name for name in affine if depends_on_image(surveys, name))
        if not others or (affine and self.options.tensors == "affine"):
            return affine, ()
        curved = differentiable_tensors(hypotheses[0], prior, others)
        if not curved and not affine:
            raise AttackError(_neither_linear_nor_smooth(method, hypotheses[0], surveys[0]))
        return affine, curved


def _neither_linear_nor_smooth(method: str, hypothesis: Hypothesis, found: Survey) -> str:
    far = {name: value for name, value in found.deviation.items() if value > AFFINE_TOLERANCE}
    shares = ", ".join(f"{name!r} by {value:.2g}" for name, value in far.items())
    return (
        f"{method} is neither linear given its secrets nor differentiable: under hypothesis {hypothesis.name!r} its "
        f"payload deviates from affine in the image, {shares} of its variation (rounding stays below "
        f"{AFFINE_TOLERANCE:g}; inf is for tensors not of floats), and no gradient reaches the image. Write hypotheses "
        "that give the values before rounding, or use an attack that learns from examples"
    )
