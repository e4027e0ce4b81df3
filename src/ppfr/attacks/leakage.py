"""One attack tried on real faces: queries drawn, protected, attacked, and measured against other photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.attacks.attacker import Budget, Progress, PublicFaces, observe
from ppfr.attacks.base import Attack, Recovery, Result
from ppfr.attacks.metrics import FaceEmbedder, Figure, MetricContext, Truth
from ppfr.attacks.threat import ThreatModel
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.metrics.identification import Search, draw_search
from ppfr.evaluation.metrics.statistics import Interval
from ppfr.methods.common.base import Method
from ppfr.methods.common.payload import Payload
from ppfr.networks import Recogniser
from ppfr.util.errors import AttackError


@dataclass(frozen=True)
class Leakage:
    """What one attack got from one method's payloads: figures by name, each with its interval, ceiling and chance.

    `rank1` and the properties beside it are None where nobody was identified: no judge, or an attack that gives
    neither images nor embeddings. `ssim` and `psnr` are None for results other than images.
    """

    method: str
    attack: str
    threat: str
    queries: int
    people: int
    judge: str | None
    figures: Mapping[str, Figure]
    seconds: float

    def _value(self, name: str) -> float | None:
        return self.figures[name].value if name in self.figures else None

    def _interval(self, name: str) -> Interval | None:
        return self.figures[name].interval if name in self.figures else None

    @property
    def rank1(self) -> float | None:
        """Share of results whose person comes first in a search of other clear photos."""
        return self._value("rank1")

    @property
    def rank1_interval(self) -> Interval | None:
        """Interval of `rank1`."""
        return self._interval("rank1")

    @property
    def ceiling_rank1(self) -> float | None:
        """The same share for the clear images: what the recogniser can do at all."""
        return self.figures["rank1"].ceiling if "rank1" in self.figures else None

    @property
    def chance(self) -> float | None:
        """The same share for results that show nothing."""
        return self.figures["rank1"].chance if "rank1" in self.figures else None

    @property
    def privacy(self) -> float | None:
        """1 - (leak - chance) / (ceiling - chance), within [0,1]; None without a judge, or if it only guesses."""
        leak = self.figures["rank1"].leak if "rank1" in self.figures else None
        return None if leak is None else 1 - leak

    @property
    def ssim(self) -> float | None:
        """Structural similarity of recovered and clear images."""
        return self._value("ssim")

    @property
    def psnr(self) -> float | None:
        """Peak signal-to-noise ratio of recovered images in dB, at most 60."""
        return self._value("psnr")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.method,
            "attack": self.attack,
            "threat": self.threat,
            "queries": self.queries,
            "people": self.people,
            "judge": self.judge,
            "rank1": self.rank1,
            "rank1_interval": _plain(self.rank1_interval),
            "ceiling_rank1": self.ceiling_rank1,
            "chance": self.chance,
            "privacy": self.privacy,
            "ssim": self.ssim,
            "ssim_interval": _plain(self._interval("ssim")),
            "psnr": self.psnr,
            "psnr_interval": _plain(self._interval("psnr")),
            "seconds": self.seconds,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }

    def __str__(self) -> str:
        told = []
        if self.rank1 is not None and self.rank1_interval is not None:
            low, high = self.rank1_interval
            context = f"(clear {self.ceiling_rank1:.1%}, chance {self.chance:.1%})"
            told.append(f"Rank-1 {self.rank1:.1%} [{low:.1%}, {high:.1%}] {context}")
        elif self.judge is None:
            told.append("Rank-1 not measured (no judge)")
        if self.ssim is not None:
            told.append(f"SSIM {self.ssim:.3f}, PSNR {self.psnr:.1f} dB")
        for name in ("pair_accuracy", "attribute_accuracy"):
            if name in self.figures:
                figure = self.figures[name]
                told.append(f"{name.replace('_', ' ')} {figure.value:.1%} (clear {figure.ceiling:.1%})")
        if "d_sys" in self.figures:
            figure = self.figures["d_sys"]
            told.append(f"D_sys {figure.value:.2f} (same secrets {figure.ceiling:.2f})")
        return f"{self.attack} on {self.method}: {', '.join(told)}; {self.people} people; attacker {self.threat}"


def _plain(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


@dataclass(frozen=True)
class Trial:
    """One attack on one method and everything it was measured with, for pictures.

    `truth.originals` are the images behind `payload`, at the set's indices `search.probes`; where several payloads of
    each were seen this is the first.
    """

    search: Search
    truth: Truth
    payload: Payload
    result: Result
    leakage: Leakage

    @property
    def originals(self) -> Tensor:
        """The images (B,3,H,W) RGB in [-1,1] behind the payload."""
        return self.truth.originals

    @property
    def recovery(self) -> Recovery:
        """The result, if it is of images; else raises AttackError."""
        if not isinstance(self.result, Recovery):
            raise AttackError(f"{self.result.attack} recovers no images; it gives {type(self.result).__name__}")
        return self.result


def try_attack(
    attack: Attack[Any],
    target: Method,
    faces: FaceSet,
    *,
    judge: FaceEmbedder | None = None,
    public: PublicFaces | FaceSet | Tensor | None = None,
    recogniser: Recogniser | None = None,
    threat: ThreatModel | None = None,
    budget: Budget | str = "fast",
    people: int | None = None,
    photos: int = 3,
    views: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trial:
    """Attack one query from each person of a set and measure what leaks.

    A query and `photos` OTHER images of each person are drawn by `seed`; people with fewer images are left out, and at
    most `people` are taken; `views` payloads of each query are seen, by default as many as the attack is usually tried
    with. `public` are faces of other people for the attacker, RGB in [-1,1], and `recogniser` is its
    own, never the judge. The work is done on the device of `public` if that is a tensor, else on the CPU. Raises
    DataError when fewer than two people remain, AttackError as the attack does.
    """
    search = _first_people(draw_search(faces.labels, photos=photos, seed=seed), photos, people)
    device = public.device if isinstance(public, Tensor) else torch.device("cpu")
    truth = Truth(
        to_tensor(faces.images(search.probes)).to(device),
        faces.labels[search.probes],
        to_tensor(faces.images(search.gallery)).to(device),
        faces.labels[search.gallery],
        seed,
    )
    prepared = attack.prepare(
        target,
        faces=public,
        recogniser=recogniser,
        threat=threat,
        views=views,
        budget=budget,
        seed=seed,
        progress=progress,
    )
    attacker = prepared.attacker
    generator = torch.Generator(device).manual_seed(seed)
    payloads = observe(target, truth.originals, attacker.threat.sees, attacker.views, generator)
    result = prepared(payloads)
    return Trial(search, truth, payloads[0], result, leakage_of(result, truth, judge=judge, recogniser=recogniser))


def measure_leakage(
    recovery: Recovery,
    originals: Tensor,
    people: npt.ArrayLike,
    *,
    gallery: Tensor | None = None,
    gallery_people: npt.ArrayLike | None = None,
    judge: FaceEmbedder | None = None,
    seed: int = 0,
) -> Leakage:
    """Compare recovered images with the originals (B,3,H,W) RGB in [-1,1] of `people` (B,).

    With a `judge`, which neither method nor attack was trained with, also identify them in `gallery` (G,3,H,W), photos
    of `gallery_people` (G,) that are not among the originals. Intervals are bootstrapped by `seed`. Raises AttackError
    for a judge without a gallery or another number of originals, DataError for people who are not in the gallery.
    """
    owners = None if gallery_people is None else np.asarray(gallery_people)
    return leakage_of(recovery, Truth(originals, np.asarray(people), gallery, owners, seed), judge=judge)


def leakage_of(
    result: Result, truth: Truth, *, judge: FaceEmbedder | None = None, recogniser: FaceEmbedder | None = None
) -> Leakage:
    """All figures of a result: pixels, and who is identified by the judge or, for embeddings, by the attacker."""
    return Leakage(
        method=result.target,
        attack=result.attack,
        threat=str(result.threat),
        queries=len(result),
        people=len(np.unique(truth.people)),
        judge=None if judge is None else judge.name,
        figures=result.measure(MetricContext(truth, judge, recogniser)),
        seconds=result.seconds,
    )


def _first_people(search: Search, photos: int, people: int | None) -> Search:
    if people is None:
        return search
    if people < 2:
        raise AttackError(f"people is {people}; expected at least 2 to tell apart, or None for all")
    return Search(search.probes[:people], search.gallery[: people * photos])
