"""What an attack's success is: measures that can be combined, each between chance and the ceiling of clear photos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ppfr.attacks.base import Inference, Linkage, Recovery, Result
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


class Embedder(Protocol):
    """What measures need of a recogniser: see `ppfr.networks.Recogniser`."""

    name: str
    sha256: str

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Embeddings (B,D) of images (B,3,H,W) RGB in [-1,1]."""
        ...


@dataclass(frozen=True)
class Figure:
    """One measure of an attack's success, the higher the more leaks.

    `interval` is a 95 % bootstrap over people. `ceiling` is the same measure of the clear images, `chance` of results
    that know nothing of them. `by` names the recogniser that judged, if one did.
    """

    name: str
    value: float
    interval: Interval
    chance: float
    ceiling: float | None = None
    ceiling_interval: Interval | None = None
    by: str = ""

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
    """What only the evaluator has: the images (B,3,H,W) RGB in [-1,1] behind the payloads, and whose they are (B,).

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

    def embeddings(self, recogniser: Embedder) -> tuple[Floats, Floats]:
        """Embeddings (B,D) of the originals and (G,D) of the gallery, computed once for each recogniser."""
        if recogniser not in self._embedded:
            gallery, _ = self.other_photos()
            self._embedded[recogniser] = _embed(recogniser, self.originals), _embed(recogniser, gallery)
        return self._embedded[recogniser]


def _embed(recogniser: Embedder, images: Tensor) -> Floats:
    found: Floats = recogniser.embed(images).double().cpu().numpy()
    return found


class Success(ABC):
    """A measure of what an attack got; combine several with `measure`."""

    @abstractmethod
    def applies(self, result: Result) -> bool:
        """Whether this measure is about such a result."""

    @abstractmethod
    def figures(self, result: Any, truth: Truth) -> list[Figure]:
        """The measure's figures for a result that it applies to."""


def measure(result: Result, truth: Truth, successes: Iterable[Success]) -> dict[str, Figure]:
    """Figures by name, of those measures that apply to a result.

    Raises AttackError for another number of originals than results, and for a judge that the attack itself used.
    """
    if len(result) != len(truth.people):
        raise AttackError(f"{len(truth.people)} originals for {len(result)} results; expected one each")
    found = [figure for success in successes if success.applies(result) for figure in success.figures(result, truth)]
    return {figure.name: figure for figure in found}


class PixelSimilarity(Success):
    """SSIM and PSNR (dB, at most 60) of recovered images; chance is what the photo of another person gives."""

    def applies(self, result: Result) -> bool:
        return isinstance(result, Recovery)

    def figures(self, result: Recovery, truth: Truth) -> list[Figure]:
        clear = (truth.originals.float() / 2 + 0.5).clamp(0, 1)
        others = clear[_someone_else(truth)]

        def figure(name: str, compare: Callable[[Tensor, Tensor], Tensor], ceiling: float | None) -> Figure:
            values = compare(result.images.to(clear), clear).double().clamp_max(PSNR_CEILING).cpu().numpy()
            chance = float(compare(others, clear).double().clamp_max(PSNR_CEILING).mean())
            interval = bootstrap_mean(values, truth.people, seed=truth.seed)
            return Figure(name, float(values.mean()), interval, chance, ceiling)

        return [figure("ssim", ssim, 1.0), figure("psnr", psnr, None)]


def _someone_else(truth: Truth) -> npt.NDArray[np.intp]:
    """For each original the index of one of another person; beyond half of all images a person meets itself."""
    order = np.argsort(truth.people, kind="stable")
    _, sizes = np.unique(truth.people, return_counts=True)
    other = np.empty(len(order), np.intp)
    # beyond the most photographed person's block lies someone else
    other[order] = np.roll(order, -int(sizes.max()))
    return other


class ReIdentification(Success):
    """Whose face is in a recovered image? Searched in other clear photos, by a judge that the attack never met."""

    def __init__(self, judge: Embedder) -> None:
        self.judge = judge

    def applies(self, result: Result) -> bool:
        return isinstance(result, Recovery)

    def figures(self, result: Recovery, truth: Truth) -> list[Figure]:
        refuse_own_judge(result, self.judge)
        clear, _ = truth.embeddings(self.judge)
        return _search(_embed(self.judge, result.images * 2 - 1), clear, self.judge, truth)


class LinkIdentification(Success):
    """Whose payload is it? Linked embeddings searched in other clear photos, by the attacker's own recogniser."""

    def __init__(self, recogniser: Embedder) -> None:
        self.recogniser = recogniser

    def applies(self, result: Result) -> bool:
        return isinstance(result, Linkage) and result.recogniser == self.recogniser.sha256

    def figures(self, result: Linkage, truth: Truth) -> list[Figure]:
        clear, _ = truth.embeddings(self.recogniser)
        return _search(result.embeddings.double().cpu().numpy(), clear, self.recogniser, truth)


def refuse_own_judge(result: Result, judge: Embedder) -> None:
    """Raise AttackError when the judge is the recogniser that the attack itself used."""
    if result.recogniser and result.recogniser == judge.sha256:
        raise AttackError(
            f"{judge.name} is the attacker's own recogniser in {result.attack}; a judge must be one that neither the "
            "method nor the attack was trained with"
        )


def _search(probes: Floats, clear: Floats, recogniser: Embedder, truth: Truth) -> list[Figure]:
    _, known = truth.embeddings(recogniser)
    _, owners = truth.other_photos()
    got, most = (
        identification(embedded, truth.people, known, owners, fars=FARS, seed=truth.seed)
        for embedded in (probes, clear)
    )
    rank1 = Figure(
        "rank1", got.rank1, got.rank_interval[1], got.chance[1], most.rank1, most.rank_interval[1], recogniser.name
    )
    return [rank1, *(figure for far in FARS if (figure := _tar(far, got, most, recogniser)) is not None)]


def _tar(far: float, got: Identification, most: Identification, recogniser: Embedder) -> Figure | None:
    value, interval = got.tar[far], got.tar_interval[far]
    if value is None or interval is None:
        return None
    return Figure(f"tar@{far:g}", value, interval, far, most.tar[far], most.tar_interval[far], recogniser.name)


class PairLinkage(Success):
    """Are a payload and a clear photo of one person? Accuracy over ten folds of as many pairs that are as are not.

    A linked embedding is compared with the photo's by the attacker's recogniser, a recovered image by the judge. The
    ceiling is the recogniser's own accuracy on the same pairs, with the clear image in the payload's place.
    """

    def __init__(self, recogniser: Embedder) -> None:
        self.recogniser = recogniser

    def applies(self, result: Result) -> bool:
        own = result.recogniser == self.recogniser.sha256
        return (isinstance(result, Linkage) and own) or (isinstance(result, Recovery) and not own)

    def figures(self, result: Linkage | Recovery, truth: Truth) -> list[Figure]:
        clear, known = truth.embeddings(self.recogniser)
        _, owners = truth.other_photos()
        probes = (
            result.embeddings.double().cpu().numpy()
            if isinstance(result, Linkage)
            else _embed(self.recogniser, result.images * 2 - 1)
        )
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
        return [
            Figure(
                "pair_accuracy",
                got.accuracy,
                _accuracy_interval(got),
                0.5,
                most.accuracy,
                _accuracy_interval(most),
                self.recogniser.name,
            )
        ]


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


class AttributeAccuracy(Success):
    """How often a soft attribute was read off rightly, every class counting alike (balanced accuracy).

    `label` gives the true classes (B,) int64 of clear images (B,3,H,W) RGB in [-1,1], so that the ceiling is 1. Chance
    is 1 / classes. Raises AttackError when all images are of one class.
    """

    def __init__(self, attribute: str, label: Callable[[Tensor], Tensor]) -> None:
        self.attribute, self.label = attribute, label

    def applies(self, result: Result) -> bool:
        return isinstance(result, Inference) and result.attribute == self.attribute

    def figures(self, result: Inference, truth: Truth) -> list[Figure]:
        true = self.label(truth.originals).cpu().numpy()
        classes, own = np.unique(true, return_inverse=True)
        if len(classes) < 2:
            raise AttackError(f"all {len(true)} images are of class {true[0]} of {self.attribute!r}; expected several")
        hits = (result.classes.cpu().numpy() == true).astype(np.float64)
        index, units = group_index(truth.people)
        right, shown = (np.zeros((units, len(classes))) for _ in range(2))
        np.add.at(right, (index, own), hits)
        np.add.at(shown, (index, own), 1)
        drawn = draw_counts(units, REPLICATES, np.random.default_rng(truth.seed))
        value = float((right.sum(0) / shown.sum(0)).mean())
        with np.errstate(invalid="ignore"):
            interval = rate_interval(value, ((drawn @ right) / (drawn @ shown)).mean(1), units)
        return [Figure("attribute_accuracy", value, interval, 1 / len(classes), 1.0)]


__all__ = [
    "AttributeAccuracy",
    "Embedder",
    "Figure",
    "LinkIdentification",
    "PairLinkage",
    "PixelSimilarity",
    "ReIdentification",
    "Success",
    "Truth",
    "draw_linkage_pairs",
    "measure",
    "refuse_own_judge",
]
