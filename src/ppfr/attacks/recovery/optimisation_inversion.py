"""Optimisation inversion: MAP estimates of images by gradient descent through the client."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Recovery, register
from ppfr.attacks.inverse.face_prior import FacePrior, SpectralFaces, face_prior, to_images
from ppfr.attacks.inverse.gauss_newton import require_gradients
from ppfr.attacks.inverse.hypothesis_search import screen
from ppfr.attacks.inverse.least_squares import channel_noise
from ppfr.attacks.inverse.linear_operator import Survey, send, send_channels, survey
from ppfr.attacks.inverse.observations import Observed
from ppfr.attacks.inverse.stochastic_client import StochasticClient
from ppfr.attacks.threat import Has, Sees, ThreatModel, client_knowledge
from ppfr.evaluation.cost import multiply_adds
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.util.errors import AttackError

# images that go through the client at once
_CHUNK = 8
# noise is first taken to be this share of a channel's strength; it falls to the option `noise`
_FIRST_NOISE = 0.3
# Adam's decay rates: short memories, for there are few steps
_DECAYS = (0.9, 0.95)
# multiply-adds of a client that may be descended on with all steps, and how few steps make no descent
_LIGHT, _FEWEST = 45_000_000, 8


class OptimisationInversionOptions(AttackOptions):
    """Settings of optimisation inversion."""

    steps: int = Field(100, description="steps of Adam in the fast budget, for a client that costs little", ge=1)
    rate: float = Field(0.5, description="step size at its peak, in deviations of each spatial frequency", gt=0)
    noise: float = Field(0.01, description="share of a channel's usual strength that need not be explained", gt=0)
    edges: float = Field(0.3, description="weight of total variation beside the Gaussian prior", ge=0)
    candidates: int = Field(3, description="hypotheses that are tried on each payload, the likeliest", ge=1)
    screening: int = Field(10, description="steps that choose among these", ge=1)
    draws: int = Field(2, description="draws that stand for a client with too many to list", ge=1)


@register
class OptimisationInversion(Attack[Recovery]):
    """The MAP estimate of the image x whose payload is y, by gradient descent through the client.

    Minimises |client(x) - y|^2 / (2 noise^2) + |z|^2 / 2 + edges * |edges of x| / usual edge with Adam (Kingma and Ba,
    ICLR 2015), from the mean face. The descent is in z, the deviation from the mean face with each spatial frequency
    divided by its usual strength in faces (`SpectralFaces`). The noise begins at 30 % of each channel's usual strength
    and falls to `noise`, so that coarse structure converges before fine. The hypotheses about the client that the
    channels' energies favour are tried on each payload for a few steps, and the one with the least misfit is kept. A
    client with too many draws to list is replaced by itself without noise, if its draws only add noise, or else by its
    mean over a few draws.
    """

    name = "optimisation-inversion"
    title = "Optimisation inversion"
    Options = OptimisationInversionOptions
    options: OptimisationInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(sees=Sees.PAYLOAD, knows=client_knowledge(target), has=holds & {Has.FACES})

    def fit(self, attacker: Attacker) -> None:
        self._prior = face_prior(attacker.face_images, attacker.input_size, attacker.device)
        method, tensors = attacker.target.name, list(attacker.schema.tensors)
        stochastic = StochasticClient(method, tensors, attacker.client, self._prior)
        self._hypotheses = attacker.hypotheses() or [stochastic.expected(self.options.draws)]
        self._names = require_gradients(method, self._hypotheses[0], self._prior, tensors)
        self._steps = self._affordable(attacker)
        self._surveys = [survey(hypothesis, self._prior) for hypothesis in self._hypotheses]

    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        rows = list(range(len(payload)))
        likely = self._likely(payload)
        screening = self.options.screening if len(likely) > 1 else 0
        total = len(rows) * (self._steps + len(likely) * screening)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            attacker.progress(done, total)

        kept = likely[0]
        if screening:
            tried = torch.stack([self._descend_all(payload, column, screening, advance)[1] for column in likely])
            kept = [likely[best][row] for row, best in enumerate(tried.argmin(0).tolist())]
        planes, misfit = self._descend_all(payload, kept, self._steps, advance)
        unused = ", ".join(sorted(payload.tensors.keys() - set(self._names)))
        return Recovery(
            images=(to_images(planes) / 2 + 0.5).clamp(0, 1),
            hypotheses=tuple(self._hypotheses[index].name for index in kept),
            misfit=misfit,
            tensors=self._names,
            prior=self._prior.description,
            notes={
                "steps": str(self._steps),
                **({"not differentiable, not used": unused} if unused else {}),
            },
        )

    def _affordable(self, attacker: Attacker) -> int:
        """Steps of descent that the budget allows; raises AttackError where these are too few."""
        cost = multiply_adds(lambda: send(self._hypotheses[0], self._prior.mean[None]))
        wanted = attacker.budget.steps(self.options.steps)
        steps = wanted if cost <= _LIGHT else wanted * _LIGHT // cost
        if steps < min(wanted, _FEWEST):
            raise AttackError(
                f"a pass through the client of {attacker.target.name} takes {cost / 1e6:,.0f} M multiply-adds, so that "
                f"the budget {attacker.budget.name!r} ends after {steps} steps, too few to descend; use a larger one"
            )
        return steps

    def _likely(self, payload: Payload) -> list[list[int]]:
        """The likeliest hypothesis of each row by the energies of its channels, the second likeliest, and so on."""
        scores = screen(self._surveys, self._names, payload.tensors)
        order = scores.argsort(dim=1, stable=True)[:, : self.options.candidates]
        return [column.tolist() for column in order.unbind(1)]

    def _descend_all(
        self, payload: Payload, hypotheses: Sequence[int], steps: int, advance: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Planes (B,3,H,W) and misfits (B,) of all rows, each under its hypothesis."""
        planes = self._prior.mean.float().expand(len(payload), -1, -1, -1).clone()
        misfit = planes.new_zeros(len(payload))
        for index in sorted(set(hypotheses)):
            rows = [row for row, own in enumerate(hypotheses) if own == index]
            for first in range(0, len(rows), _CHUNK):
                chunk = rows[first : first + _CHUNK]
                descent = Descent(
                    self._hypotheses[index],
                    self._names,
                    self._surveys[index],
                    self._prior,
                    Observed.single(payload.tensors, chunk),
                    self.options,
                )
                planes[chunk], misfit[chunk] = descent.run(steps)
                advance(len(chunk) * steps)
        return planes, misfit


class Descent:
    """Adam on some images at once, under one hypothesis; their losses are independent."""

    def __init__(
        self,
        hypothesis: Hypothesis,
        names: Sequence[str],
        found: Survey,
        prior: FacePrior,
        observed: Observed,
        options: OptimisationInversionOptions,
    ) -> None:
        self._hypothesis, self._names, self._options = hypothesis, names, options
        self._faces = SpectralFaces(prior)
        self._prior = prior
        self._count = len(observed)
        everything = slice(None)
        self._seen = {name: observed.channels(name, everything).float() for name in names}
        self._average = {name: found.average[name].float() for name in names}
        self._scale = {name: found.scale[name] for name in names}
        self._rounding = {name: channel_noise(found, name, 0.0, observed.noise(name, spread=False)) for name in names}

    def run(self, steps: int) -> tuple[Tensor, Tensor]:
        """Planes (B,3,H,W) after some steps from the mean face, and their misfit (B,) as defined by `Recovery`."""
        white = self._faces.start(self._count).requires_grad_()
        optimiser = torch.optim.Adam([white], betas=_DECAYS)
        fall = math.log(self._options.noise / _FIRST_NOISE)
        for step in range(steps):
            done = (step + 0.5) / steps
            for group in optimiser.param_groups:
                # a quarter of a cosine from full speed to rest
                group["lr"] = self._options.rate * math.cos(math.pi / 2 * done)
            with torch.enable_grad():
                loss = self._loss(white, _FIRST_NOISE * math.exp(fall * done))
                (white.grad,) = torch.autograd.grad(loss, white)
            optimiser.step()
        with torch.no_grad():
            planes = self._faces.planes(white)
            return planes, self._misfit(planes)

    def _loss(self, white: Tensor, noise: float) -> Tensor:
        """The objective summed over images, times the square of the noise."""
        planes = self._faces.planes(white)
        prior = white.square().sum() / 2 + self._options.edges * self._prior.total_variation(planes).sum()
        return self._distance(self._sent(planes), noise).sum() / 2 + noise**2 * prior

    def _distance(self, sent: Mapping[str, Tensor], noise: float) -> Tensor:
        """Squared distance (B,) of sent from observed channels, in units of each channel's usual strength."""
        # summed over places before channels are weighted: payloads are large
        parts = [(sent[name] - self._seen[name]).square().sum(2) @ self._weight(name, noise) for name in self._names]
        return torch.stack(parts).sum(0)

    def _weight(self, name: str, noise: float) -> Tensor:
        """Weights (C,) of a tensor's channels; 0 for constant ones."""
        return (noise**2 / ((noise * self._scale[name]).square() + self._rounding[name])).float()

    def _sent(self, planes: Tensor) -> dict[str, Tensor]:
        sent = send_channels(self._hypothesis, self._names, planes)
        return {name: channels.float() for name, channels in zip(self._names, sent, strict=True)}

    def _misfit(self, planes: Tensor) -> Tensor:
        noise = self._options.noise
        left, whole = (self._distance(sent, noise) for sent in (self._sent(planes), self._average))
        return (left / whole.clamp_min(1e-30)).sqrt()
