"""What a recovery gives away: who is in the picture, and how like the original it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.attacks.attacker import Progress
from ppfr.attacks.base import Attack, Recovery
from ppfr.attacks.threat import ThreatModel
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.errors import AttackError
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.identification import Identification, Search, draw_search, identification
from ppfr.evaluation.similarity import psnr, ssim
from ppfr.evaluation.statistics import Interval, as_plain, bootstrap_mean
from ppfr.methods.base import Method
from ppfr.methods.payload import Payload
from ppfr.networks import Recogniser

# 8-bit images that are equal after rounding differ by at least this much in dB
_PSNR_CEILING = 60.0


@dataclass(frozen=True)
class Leakage:
    """What one attack got from one method's payloads; rates in [0,1], intervals 95 % over people.

    `identified` matches the recovered images, and `ceiling` the clear ones, against OTHER clear photos of the same
    people, by `judge`; both are None without a judge. `ssim` and `psnr` (dB, at most 60) compare with the clear images.
    """

    method: str
    attack: str
    threat: str
    queries: int
    people: int
    judge: str | None
    identified: Identification | None
    ceiling: Identification | None
    ssim: float
    ssim_interval: Interval
    psnr: float
    psnr_interval: Interval
    seconds: float

    @property
    def rank1(self) -> float | None:
        """Share of recovered images whose person the judge finds first."""
        return None if self.identified is None else self.identified.rank1

    @property
    def rank1_interval(self) -> Interval | None:
        """Interval of `rank1`."""
        return None if self.identified is None else self.identified.rank_interval[1]

    @property
    def ceiling_rank1(self) -> float | None:
        """The same share for the clear images: what the judge can do at all."""
        return None if self.ceiling is None else self.ceiling.rank1

    @property
    def chance(self) -> float | None:
        """The same share for images that show nothing."""
        return None if self.identified is None else self.identified.chance[1]

    @property
    def privacy(self) -> float | None:
        """1 - (leak - chance) / (ceiling - chance), within [0,1]; None without a judge, or if it only guesses."""
        if self.rank1 is None or self.ceiling_rank1 is None or self.chance is None:
            return None
        room = self.ceiling_rank1 - self.chance
        return None if room <= 0 else min(1.0, max(0.0, 1 - (self.rank1 - self.chance) / room))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figures = {
            "method": self.method,
            "attack": self.attack,
            "threat": self.threat,
            "queries": self.queries,
            "people": self.people,
            "judge": self.judge,
            "rank1": self.rank1,
            "rank1_interval": self.rank1_interval,
            "ceiling_rank1": self.ceiling_rank1,
            "chance": self.chance,
            "privacy": self.privacy,
            "ssim": self.ssim,
            "ssim_interval": self.ssim_interval,
            "psnr": self.psnr,
            "psnr_interval": self.psnr_interval,
            "seconds": self.seconds,
        }
        return {name: as_plain(value) for name, value in figures.items()}

    def __str__(self) -> str:
        likeness = f"SSIM {self.ssim:.3f}, PSNR {self.psnr:.1f} dB"
        if self.rank1 is None or self.rank1_interval is None:
            found = "Rank-1 not measured (no judge)"
        else:
            low, high = self.rank1_interval
            context = f"(clear {self.ceiling_rank1:.1%}, chance {self.chance:.1%})"
            found = f"Rank-1 {self.rank1:.1%} [{low:.1%}, {high:.1%}] {context}"
        return f"{self.attack} on {self.method}: {found}, {likeness}; {self.people} people; attacker {self.threat}"


@dataclass(frozen=True)
class Trial:
    """One attack on one method and everything it was measured with, for pictures.

    `originals` (B,3,H,W) RGB in [-1,1] are the images behind `payload`, at the set's indices `search.probes`.
    """

    search: Search
    originals: Tensor
    payload: Payload
    recovery: Recovery
    leakage: Leakage


def try_attack(
    attack: Attack[Recovery],
    target: Method,
    faces: FaceSet,
    *,
    judge: Recogniser | None = None,
    public: Tensor | None = None,
    threat: ThreatModel | None = None,
    people: int | None = None,
    photos: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trial:
    """Attack one query from each person of a set and measure what leaks.

    A query and `photos` OTHER images of each person are drawn by `seed`; people with fewer images are left out, and at
    most `people` are taken. `public` (n,3,H,W) RGB in [-1,1] are faces of other people for the attacker. The work is
    done on the device of `public`, or on the CPU. Raises DataError when fewer than two people remain, AttackError as
    the attack does.
    """
    search = _first_people(draw_search(faces.labels, photos=photos, seed=seed), photos, people)
    device = torch.device("cpu") if public is None else public.device
    originals = to_tensor(faces.images(search.probes)).to(device)
    with evaluating(target), torch.no_grad():
        payload = target.protect(originals, torch.Generator(device).manual_seed(seed))
    recovery = attack(target, payload, faces=public, threat=threat, seed=seed, progress=progress)
    leakage = measure_leakage(
        recovery,
        originals,
        faces.labels[search.probes],
        gallery=to_tensor(faces.images(search.gallery)).to(device),
        gallery_people=faces.labels[search.gallery],
        judge=judge,
        seed=seed,
    )
    return Trial(search, originals, payload, recovery, leakage)


def measure_leakage(
    recovery: Recovery,
    originals: Tensor,
    people: npt.ArrayLike,
    *,
    gallery: Tensor | None = None,
    gallery_people: npt.ArrayLike | None = None,
    judge: Recogniser | None = None,
    seed: int = 0,
) -> Leakage:
    """Compare recovered images with the originals (B,3,H,W) RGB in [-1,1] of `people` (B,).

    With a `judge`, which neither method nor attack was trained with, also identify them in `gallery` (G,3,H,W), photos
    of `gallery_people` (G,) that are not among the originals. Intervals are bootstrapped by `seed`. Raises AttackError
    for a judge without a gallery or another number of originals, DataError for people who are not in the gallery.
    """
    if len(originals) != len(recovery):
        raise AttackError(f"{len(originals)} originals for {len(recovery)} recovered images; expected one each")
    owners = np.asarray(people)
    clear = (originals.float() / 2 + 0.5).clamp(0, 1)
    likeness = ssim(recovery.images, clear).double().cpu().numpy()
    ratio = psnr(recovery.images, clear).double().clamp_max(_PSNR_CEILING).cpu().numpy()
    identified = ceiling = None
    if judge is not None:
        if gallery is None or gallery_people is None:
            raise AttackError("a judge needs `gallery` and `gallery_people`: other clear photos of the same people")
        known = judge.embed(gallery).cpu().numpy()
        identified, ceiling = (
            identification(judge.embed(images).cpu().numpy(), owners, known, gallery_people, seed=seed)
            for images in (recovery.images * 2 - 1, originals)
        )
    return Leakage(
        method=recovery.target,
        attack=recovery.attack,
        threat=str(recovery.threat),
        queries=len(recovery),
        people=len(np.unique(owners)),
        judge=None if judge is None else judge.name,
        identified=identified,
        ceiling=ceiling,
        ssim=float(likeness.mean()),
        ssim_interval=bootstrap_mean(likeness, owners, seed=seed),
        psnr=float(ratio.mean()),
        psnr_interval=bootstrap_mean(ratio, owners, seed=seed),
        seconds=recovery.seconds,
    )


def _first_people(search: Search, photos: int, people: int | None) -> Search:
    if people is None:
        return search
    if people < 2:
        raise AttackError(f"people is {people}; expected at least 2 to tell apart, or None for all")
    return Search(search.probes[:people], search.gallery[: people * photos])
