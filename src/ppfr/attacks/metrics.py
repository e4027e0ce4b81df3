"""Metrics of attack results: identification, pair verification, image similarity and attribute accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ppfr.evaluation.metrics.identification import Identification, identification
from ppfr.evaluation.metrics.similarity import psnr, ssim
from ppfr.evaluation.metrics.statistics import (
    REPLICATES,
    Floats,
    Interval,
    as_plain,
    bootstrap_mean,
    draw_counts,
    group_index,
    rate_interval,
)
from ppfr.evaluation.metrics.verification import Verification, verification
from ppfr.util.errors import AttackError

FARS = (1e-2, 1e-3)
# 8-bit images that are equal after rounding differ by at least this much in dB
PSNR_CEILING = 60.0
_FOLDS = 10


class FaceEmbedder(Protocol):
    """The part of `ppfr.networks.Recogniser` that metrics use."""

    name: str
    sha256: str

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Embeddings (B,D) of images (B,3,H,W) RGB in [-1,1]."""
        ...


@dataclass(frozen=True)
class Figure:
    """One metric of an attack's result; higher values mean that more leaks.

    `title` is its name in reports. Only a metric that `counts` is the leak of its attack; the others stand beside it.
    `interval` is a 95 % bootstrap over people. `ceiling` is the same metric of the clear images and `chance` that of
    results which are independent of them. `by` names the recogniser that compared, if one did.
    """

    name: str
    title: str
    value: float
    interval: Interval
    chance: float
    ceiling: float | None = None
    ceiling_interval: Interval | None = None
    by: str = ""
    counts: bool = False

    @property
    def leak(self) -> float | None:
        """(value - chance) / (ceiling - chance) within [0,1]; None where there is no ceiling above chance."""
        if self.ceiling is None or self.ceiling <= self.chance:
            return None
        return min(1.0, max(0.0, (self.value - self.chance) / (self.ceiling - self.chance)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = as_plain({**vars(self), "leak": self.leak})
        return plain


@dataclass(frozen=True)
class Truth:
    """What only the evaluator has: the images (B,3,H,W) RGB in [-1,1] behind the payloads, and their identities (B,).

    `gallery` (G,3,H,W) are OTHER clear photos of the same people, `gallery_people` (G,) whose. Intervals and draws of
    pairs follow from `seed`. Raises AttackError for numbers that do not belong together.
    """

    originals: Tensor
    people: npt.NDArray[Any]
    gallery: Tensor | None = None
    gallery_people: npt.NDArray[Any] | None = None
    seed: int = 0
    _embedded: dict[Any, tuple[Floats, Floats]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.originals) != len(self.people):
            raise AttackError(f"{len(self.originals)} originals of {len(self.people)} people; expected one each")
        if (self.gallery is None) != (self.gallery_people is None):
            raise AttackError("give `gallery` and `gallery_people` together")

    def other_photos(self) -> tuple[Tensor, npt.NDArray[Any]]:
        """The gallery and its people; raises AttackError without."""
        if self.gallery is None or self.gallery_people is None:
            raise AttackError("a judge needs `gallery` and `gallery_people`: other clear photos of the same people")
        return self.gallery, self.gallery_people

    def embeddings(self, recogniser: FaceEmbedder) -> tuple[Floats, Floats]:
        """Embeddings (B,D) of the originals and (G,D) of the gallery, computed once for each recogniser."""
        if recogniser not in self._embedded:
            gallery, _ = self.other_photos()
            self._embedded[recogniser] = _embed(recogniser, self.originals), _embed(recogniser, gallery)
        return self._embedded[recogniser]


@dataclass(frozen=True)
class MetricContext:
    """What a result is measured against: the truth, and the recognisers that compare faces.

    `judge` is a recogniser that neither the method nor the attack was trained with; without one nobody is identified in
    recovered images. `recogniser` is the attacker's own, which produced linked embeddings.
    """

    truth: Truth
    judge: FaceEmbedder | None = None
    recogniser: FaceEmbedder | None = None


def _embed(recogniser: FaceEmbedder, images: Tensor) -> Floats:
    found: Floats = recogniser.embed(images).double().cpu().numpy()
    return found


def image_similarity(images: Tensor, truth: Truth) -> list[Figure]:
    """SSIM and PSNR (dB, at most 60) of recovered images (B,3,H,W) in [0,1].

    Chance is the similarity of another person's photo.
    """
    clear = (truth.originals.float() / 2 + 0.5).clamp(0, 1)
    others = clear[_someone_else(truth)]

    def figure(name: str, compare: Callable[[Tensor, Tensor], Tensor], ceiling: float | None) -> Figure:
        values = compare(images.to(clear), clear).double().clamp_max(PSNR_CEILING).cpu().numpy()
        chance = float(compare(others, clear).double().clamp_max(PSNR_CEILING).mean())
        interval = bootstrap_mean(values, truth.people, seed=truth.seed)
        return Figure(name, name.upper(), float(values.mean()), interval, chance, ceiling)

    return [figure("ssim", ssim, 1.0), figure("psnr", psnr, None)]


def _someone_else(truth: Truth) -> npt.NDArray[np.intp]:
    """For each original the index of one of another person; beyond half of all images a person meets itself."""
    order = np.argsort(truth.people, kind="stable")
    _, sizes = np.unique(truth.people, return_counts=True)
    other = np.empty(len(order), np.intp)
    # beyond the most photographed person's block lies someone else
    other[order] = np.roll(order, -int(sizes.max()))
    return other


def re_identification(images: Tensor, judge: FaceEmbedder, truth: Truth) -> list[Figure]:
    """Identification and pair verification of the faces in recovered images (B,3,H,W) in [0,1], by the judge."""
    return linkage(_embed(judge, images * 2 - 1), judge, truth)


def linkage(probes: Floats, recogniser: FaceEmbedder, truth: Truth) -> list[Figure]:
    """Identification and pair verification of embeddings (B,D) against other clear photos, by one recogniser."""
    return [*_search(probes, recogniser, truth), _pair_linkage(probes, recogniser, truth)]


def _search(probes: Floats, recogniser: FaceEmbedder, truth: Truth) -> list[Figure]:
    clear, known = truth.embeddings(recogniser)
    _, owners = truth.other_photos()
    got, most = (
        identification(embedded, truth.people, known, owners, fars=FARS, seed=truth.seed)
        for embedded in (probes, clear)
    )
    rank1 = Figure(
        "rank1",
        f"people found first among {len(np.unique(owners))}",
        got.rank1,
        got.rank_interval[1],
        got.chance[1],
        most.rank1,
        most.rank_interval[1],
        recogniser.name,
        counts=True,
    )
    return [rank1, *(figure for far in FARS if (figure := _tar(far, got, most, recogniser)) is not None)]


def _tar(far: float, got: Identification, most: Identification, recogniser: FaceEmbedder) -> Figure | None:
    value, interval = got.tar[far], got.tar_interval[far]
    if value is None or interval is None:
        return None
    title = f"TAR at FAR {far * 100:g} %"
    return Figure(f"tar@{far:g}", title, value, interval, far, most.tar[far], most.tar_interval[far], recogniser.name)


def _pair_linkage(probes: Floats, recogniser: FaceEmbedder, truth: Truth) -> Figure:
    """Ten-fold accuracy of pairs of a result and a clear photo, as many genuine as impostor ones.

    The ceiling is the recogniser's own accuracy on the same pairs, with the clear image in place of the result.
    """
    clear, known = truth.embeddings(recogniser)
    _, owners = truth.other_photos()
    first, second, same = draw_linkage_pairs(truth.people, owners, truth.seed)
    got, most = (
        verification(
            embedded[first],
            known[second],
            same,
            folds=min(_FOLDS, len(same)),
            groups=(truth.people[first], owners[second]),
            seed=truth.seed,
        )
        for embedded in (probes, clear)
    )
    return Figure(
        "pair_accuracy",
        "pair accuracy",
        got.accuracy,
        _accuracy_interval(got),
        0.5,
        most.accuracy,
        _accuracy_interval(most),
        recogniser.name,
    )


def _accuracy_interval(figures: Verification) -> Interval:
    return Interval(figures.accuracy_low, figures.accuracy_high)


def draw_linkage_pairs(
    people: npt.NDArray[Any], owners: npt.NDArray[Any], seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Every pair of a payload and a photo of its person, and as many of two people: rows, photos and truths.

    Genuine and impostor pairs of a payload lie side by side, so that folds divide payloads.
    """
    rng = np.random.default_rng(seed)
    first: list[int] = []
    second: list[int] = []
    same: list[bool] = []
    for row, person in enumerate(people):
        own, foreign = np.flatnonzero(owners == person), np.flatnonzero(owners != person)
        if not len(own) or not len(foreign):
            raise AttackError(f"person {person!r}: expected photos of them and of others in the gallery")
        drawn = rng.choice(foreign, len(own), replace=len(foreign) < len(own))
        first += [row] * 2 * len(own)
        second += [*own.tolist(), *drawn.tolist()]
        same += [True] * len(own) + [False] * len(own)
    return np.array(first, np.intp), np.array(second, np.intp), np.array(same)


def attribute_accuracy(predicted: Tensor, true: Tensor, attribute: str, truth: Truth) -> Figure:
    """Balanced accuracy of predicted classes (B,) against the true ones (B,) int64; chance is 1 / classes.

    Raises AttackError when all images are of one class.
    """
    known = true.cpu().numpy()
    classes, own = np.unique(known, return_inverse=True)
    if len(classes) < 2:
        raise AttackError(f"all {len(known)} images are of class {known[0]} of {attribute!r}; expected several")
    hits = (predicted.cpu().numpy() == known).astype(np.float64)
    index, units = group_index(truth.people)
    right, shown = (np.zeros((units, len(classes))) for _ in range(2))
    np.add.at(right, (index, own), hits)
    np.add.at(shown, (index, own), 1)
    drawn = draw_counts(units, REPLICATES, np.random.default_rng(truth.seed))
    value = float((right.sum(0) / shown.sum(0)).mean())
    with np.errstate(invalid="ignore"):
        interval = rate_interval(value, ((drawn @ right) / (drawn @ shown)).mean(1), units)
    return Figure(
        "attribute_accuracy", f"balanced accuracy of {attribute}", value, interval, 1 / len(classes), 1.0, counts=True
    )


__all__ = [
    "FaceEmbedder",
    "Figure",
    "MetricContext",
    "Truth",
    "attribute_accuracy",
    "draw_linkage_pairs",
    "image_similarity",
    "linkage",
    "re_identification",
]
