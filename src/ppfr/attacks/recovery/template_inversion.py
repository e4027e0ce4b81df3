"""Template inversion: a linear decoder from templates to faces, refined by descent on a recogniser's embedding."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ppfr.attacks.attacker import Attacker
from ppfr.attacks.base import Attack, AttackOptions, Recovery, register
from ppfr.attacks.learned.ridge import LinearMap, fit_map, unit
from ppfr.attacks.threat import Has, Sees, ThreatModel
from ppfr.methods.common.info import MethodInfo
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser

_BATCH = 16
_BETAS = (0.9, 0.99)
# cycles per image below which all frequencies change alike
_COARSEST = 4


class TemplateInversionOptions(AttackOptions):
    """Settings of template inversion."""

    steps: int = Field(12, description="steps of descent in the fast budget; 0 leaves the linear decoder alone", ge=0)
    rate: float = Field(0.03, description="learning rate of Adam at its peak", gt=0)
    smoothness: float = Field(1.5, description="changes of spatial frequency f go at a rate of 1/f^this", ge=0)
    shift: int = Field(2, description="pixels by which the image is moved about between steps, at most", ge=0)


@register
class TemplateInversion(Attack[Recovery]):
    """Images from stored templates, learned from public faces that the attacker has enrolled.

    A linear decoder (ridge regression from templates to faces) gives a first image. An attacker with a recogniser of
    its own then learns a linear map from templates to that recogniser's embeddings and optimises the image towards the
    embedding that belongs to the template. Unconstrained, such a descent ends in adversarial noise; so it works on
    Fourier coefficients, weighted as in photographs, and the image is mirrored and shifted at random (Mahendran and
    Vedaldi, CVPR 2015, sections 3 and 4, use natural-image priors and jitter for the same purpose). Published
    inversions (Mai et al., IEEE TPAMI 2019) train a convolutional decoder on many more faces than the attacker has
    here. Without a recogniser that has PyTorch weights the decoder's image is the result.
    """

    name = "template-inversion"
    title = "Template inversion"
    Options = TemplateInversionOptions
    options: TemplateInversionOptions

    def needs(self, target: MethodInfo, holds: frozenset[Has]) -> ThreatModel:
        return ThreatModel(Sees.TEMPLATES, has=frozenset({Has.FACES, Has.QUERIES}) | (holds & {Has.RECOGNISER}))

    @torch.no_grad()
    def fit(self, attacker: Attacker) -> None:
        faces = attacker.faces.images.to(attacker.device)
        templates = unit(attacker.query(faces, attacker.generator(1))["template"])
        # templates hardly depend on which way a face looks
        self._decoder = fit_map(templates, ((faces + faces.flip(-1)) / 2).flatten(1))
        self._guide = self._learn_guide(attacker, templates, faces)
        self._learned_from = f"{len(faces)} public faces, enrolled once each"

    def _learn_guide(self, attacker: Attacker, templates: Tensor, faces: Tensor) -> Guide | None:
        if Has.RECOGNISER not in attacker.threat.has or attacker.recogniser.backbone is None:
            return None
        wanted = unit(attacker.recogniser.embed(faces, flip=True)).to(faces.device)
        return Guide(attacker.recogniser, fit_map(templates, wanted), attacker.device)

    def run(self, attacker: Attacker, payload: Payload) -> Recovery:
        templates = unit(payload["template"])
        images = self._decoder(templates).reshape(-1, 3, *attacker.input_size)
        steps = round(self.options.steps * attacker.budget.effort)
        notes = {"learned from": self._learned_from, "descent": "none: no recogniser with weights"}
        if self._guide is not None:
            notes["descent"] = f"{steps} steps, guided by {self._guide.name}"
            images = self._descend(attacker, self._guide, images, templates, steps)
        return Recovery(
            (images / 2 + 0.5).clamp(0, 1),
            tensors=("template",),
            prior="faces are linear in templates; natural images are coarse",
            notes=notes,
        )

    def _descend(self, attacker: Attacker, guide: Guide, images: Tensor, templates: Tensor, steps: int) -> Tensor:
        parts = []
        for first in range(0, len(images), _BATCH):
            rows = slice(first, first + _BATCH)
            goal = guide.goal(templates[rows])
            parts.append(self._follow(guide, images[rows], goal, steps, attacker.generator(2)))
            attacker.progress(min(first + _BATCH, len(images)), len(images))
        return torch.cat(parts)

    def _follow(self, guide: Guide, start: Tensor, goal: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Optimise images from `start` (B,3,H,W) towards embeddings `goal` (B,D); rows are independent."""
        emphasis = coarse_first((start.shape[2], start.shape[3]), self.options.smoothness).to(start)
        change = torch.zeros_like(start, requires_grad=True)
        optimiser = torch.optim.Adam([change], lr=self.options.rate, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        with torch.enable_grad():
            for step in range(steps):
                seen = _moved(filtered(change, emphasis) + start, self.options.shift, generator)
                unlike = 1 - guide.likeness(seen.flip(-1) if step % 2 else seen, goal)
                (change.grad,) = torch.autograd.grad(unlike.sum(), change)
                optimiser.step()
                schedule.step()
        return (filtered(change, emphasis) + start).detach()


class Guide:
    """The attacker's recogniser, and a linear map from templates to its embeddings."""

    def __init__(self, recogniser: Recogniser, to_embedding: LinearMap, device: torch.device) -> None:
        assert recogniser.backbone is not None
        self.name = recogniser.name
        self._preprocessing = recogniser.preprocessing
        self._backbone = copy.deepcopy(recogniser.backbone).to(device).eval().requires_grad_(False)
        self._to_embedding = to_embedding

    def goal(self, templates: Tensor) -> Tensor:
        """Unit embeddings (B,D) that belong to templates."""
        return F.normalize(self._to_embedding(templates))

    def likeness(self, images: Tensor, goal: Tensor) -> Tensor:
        """Cosines (B,) of the images' embeddings and the goal, differentiable; images may leave [-1,1]."""
        inputs = self._preprocessing(images.clamp(-1, 1)).contiguous(memory_format=torch.channels_last)
        return F.cosine_similarity(self._backbone(inputs), goal)


def coarse_first(size: tuple[int, int], power: float) -> Tensor:
    """Factors (H,W//2+1) of spatial frequencies f that fall as 1/f^power, of root mean square 1."""
    radius = torch.hypot(torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1]))
    factors = radius.clamp_min(_COARSEST / max(size)) ** -power
    return factors / factors.square().mean().sqrt()


def filtered(values: Tensor, factors: Tensor) -> Tensor:
    """Values (...,H,W) with their Fourier coefficients multiplied by factors (H,W//2+1)."""
    found: Tensor = torch.fft.irfft2(torch.fft.rfft2(values) * factors, s=tuple(values.shape[-2:]))
    return found


def _moved(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return images.roll((down, right), (2, 3))
