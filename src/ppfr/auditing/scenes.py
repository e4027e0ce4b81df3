"""The people who are attacked in an audit, and the payloads that an attacker observes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.attacks.metrics import Truth
from ppfr.attacks.observation import stored_templates
from ppfr.attacks.threat import Sees
from ppfr.auditing.profiles import Profile
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.metrics.identification import draw_search
from ppfr.methods.common.method import Method
from ppfr.methods.common.payload import Payload


@dataclass(frozen=True)
class Scene:
    """Attacked people: one or several clear images (N,3,H,W) in [-1,1] of each, and the truth about them."""

    images: tuple[Tensor, ...]
    truth: Truth

    def __len__(self) -> int:
        return len(self.truth.people)

    @property
    def clear(self) -> Tensor:
        """The images behind the payloads (N,3,H,W) in [0,1]."""
        return (self.truth.originals / 2 + 0.5).clamp(0, 1)

    def payload(self, target: Method, rows: Sequence[int], sees: Sees, view: int = 0) -> Payload:
        """What the attacker observes of some rows; each view of each image has random draws of its own."""
        images = self.images[view if len(self.images) > 1 else 0]
        parts = []
        with evaluating(target), torch.no_grad():
            for row in rows:
                draws = torch.Generator(images.device).manual_seed(_stream(self.truth.seed, view, row))
                parts.append(target.protect(images[row : row + 1], draws))
        payload = Payload.concatenate(parts)
        return stored_templates(target, payload) if sees is Sees.TEMPLATES else payload


class Scenes:
    """Scenes drawn from a test set by a seed; all attacks that observe one payload or image a person share one."""

    def __init__(self, test: FaceSet, profile: Profile, seed: int, device: torch.device) -> None:
        self.test, self.profile, self.seed, self.device = test, profile, seed, device
        self._drawn: dict[tuple[int, int | None], Scene] = {}

    def draw(self, sees: Sees, people: int | None) -> Scene:
        """At most `people` people (None: all), with as many images of each as the attacker observes."""
        images = self.profile.views if sees is Sees.PAYLOADS_OF_PERSON else 1
        if (images, people) not in self._drawn:
            self._drawn[images, people] = self._draw(images, people)
        return self._drawn[images, people]

    def _draw(self, images: int, people: int | None) -> Scene:
        search = draw_search(self.test.labels, probes=images, photos=self.profile.photos, seed=self.seed)
        probes = search.probes.reshape(-1, images)
        if people is not None and people < len(probes):
            drawn = np.random.default_rng(self.seed).permutation(len(probes))[:people]
            probes = probes[np.sort(drawn)]
        views = tuple(self._tensor(probes[:, view]) for view in range(images))
        truth = Truth(
            views[0],
            self.test.labels[probes[:, 0]],
            gallery=self._tensor(search.gallery),
            gallery_people=self.test.labels[search.gallery],
            seed=self.seed,
        )
        return Scene(views, truth)

    def _tensor(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return to_tensor(self.test.images(rows)).to(self.device)


def _stream(seed: int, view: int, row: int) -> int:
    """A seed for each draw of each view of each row."""
    return int(np.random.SeedSequence([seed, view, row]).generate_state(1, np.uint64)[0] >> 1)


__all__ = ["Scene", "Scenes"]
