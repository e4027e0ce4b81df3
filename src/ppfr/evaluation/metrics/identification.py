"""Identification: whose face is it? Rank-k of probes against a gallery of photos, with TAR@FAR beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ppfr.evaluation.metrics.roc import RocFigures, roc_figures
from ppfr.evaluation.metrics.statistics import (
    REPLICATES,
    Floats,
    Interval,
    bootstrap_mean,
    group_index,
)
from ppfr.evaluation.metrics.verification import Embeddings, as_embeddings, unit_rows
from ppfr.util.errors import DataError

Pool = Literal["max", "mean"]
RANKS = (1, 5)
FARS = (1e-2, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Identification(RocFigures):
    """How well probes are matched to the people of a gallery; rates in [0, 1], intervals 95 %.

    `rank` maps k to the share of probes whose own person is among the k most similar of `people`; `chance`
    maps k to k / people. The inherited figures are of single comparisons, each probe with each gallery
    photo.
    """

    probes: int
    people: int
    photos: int
    rank: dict[int, float]
    rank_interval: dict[int, Interval]
    chance: dict[int, float]
    pool: Pool

    @property
    def rank1(self) -> float:
        """Share of probes whose own person is the most similar one (1 must be among the ranks)."""
        return self.rank[1]

    def __str__(self) -> str:
        ranks = ", ".join(
            f"Rank-{k} {rate:.1%} [{self.rank_interval[k].low:.1%}, {self.rank_interval[k].high:.1%}]"
            for k, rate in self.rank.items()
        )
        searched = f"{self.probes} probes, {self.people} people, {self.photos} photos, pool {self.pool}"
        return f"{ranks} ({searched}), {super().__str__()}"


def identification(
    probes: Embeddings,
    probe_people: npt.ArrayLike,
    gallery: Embeddings,
    gallery_people: npt.ArrayLike,
    *,
    pool: Pool = "max",
    ranks: Sequence[int] = RANKS,
    fars: Sequence[float] = FARS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Identification:
    """Match probe embeddings (P, D) to the people of gallery embeddings (G, D), labels (P,) and (G,).

    The similarity of a probe to a person is the largest cosine to their photos, or with `pool="mean"` the
    mean one. Probes and gallery must be different photos. Where people have equally similar photos, each
    order of them counts alike: embeddings that say nothing give chance. Intervals resample the probes'
    people; the gallery stays, since chance depends on its size. All P * G comparisons are resampled for the
    ROC figures: mind the time beyond some 100,000 of them. Raises DataError for a probe whose person is not
    in the gallery, and for embeddings as `verification` does.
    """
    if pool not in ("max", "mean"):
        raise DataError(f"pool {pool!r}; expected 'max' or 'mean'")
    left, right = as_embeddings(probes, "probes"), as_embeddings(gallery, "gallery")
    if left.shape[1] != right.shape[1]:
        raise DataError(f"probes are {left.shape[1]}-d, the gallery {right.shape[1]}-d; expected one recogniser's")
    wanted, known = _labels(probe_people, left, "probe"), _labels(gallery_people, right, "gallery")
    people = np.unique(known)
    absent = np.setdiff1d(wanted, people)
    if absent.size:
        raise DataError(f"{absent.size} probe people are not in the gallery, among them '{absent[0]}'")
    cosines = unit_rows(left, "probes") @ unit_rows(right, "gallery").T
    hits = rank_hits(pool_similarities(cosines, known, people, pool), np.searchsorted(people, wanted), ranks)
    first = np.repeat(wanted, len(known))
    second = np.tile(known, len(wanted))
    figures = roc_figures(
        cosines.ravel(), first == second, fars=fars, groups=(first, second), replicates=replicates, seed=seed
    )
    return Identification(
        **vars(figures),
        probes=len(wanted),
        people=len(people),
        photos=len(known),
        rank={k: float(hit.mean()) for k, hit in hits.items()},
        rank_interval={
            k: bootstrap_mean(hit, wanted, rate=True, replicates=replicates, seed=seed) for k, hit in hits.items()
        },
        chance={k: min(k, len(people)) / len(people) for k in hits},
        pool=pool,
    )


def _labels(people: npt.ArrayLike, embeddings: Floats, name: str) -> npt.NDArray[Any]:
    labels = np.asarray(people)
    if labels.shape != embeddings.shape[:1]:
        raise DataError(f"{labels.shape} {name} labels for {len(embeddings)} embeddings; expected one each")
    return labels


def pool_similarities(cosines: Floats, known: npt.NDArray[Any], people: npt.NDArray[Any], pool: Pool) -> Floats:
    """Similarity (P, people) of probes to people from cosines (P, G) to their photos."""
    order = np.argsort(known, kind="stable")
    starts = np.searchsorted(known[order], people)
    photos = np.diff(np.append(starts, len(known)))
    ranked = cosines[:, order]
    pooled: Floats = (
        np.maximum.reduceat(ranked, starts, axis=1)
        if pool == "max"
        else np.add.reduceat(ranked, starts, axis=1) / photos
    )
    return pooled


def rank_hits(scores: Floats, own: npt.NDArray[np.intp], ranks: Sequence[int]) -> dict[int, Floats]:
    """For each k, the chance (P,) that the own person is among the k best when ties are broken at random."""
    if not ranks or min(ranks) < 1:
        raise DataError(f"ranks are {list(ranks)}; expected whole numbers from 1 on")
    mine = np.take_along_axis(scores, own[:, None], axis=1)
    better = (scores > mine).sum(axis=1)
    tied = (scores == mine).sum(axis=1)
    return {int(k): np.clip((k - better) / tied, 0, 1) for k in ranks}


class ClosedSetSearch(NamedTuple):
    """Which images search which: indices of the probes (P,) and of the gallery's photos (G,)."""

    probes: npt.NDArray[np.int64]
    gallery: npt.NDArray[np.int64]


def draw_search(labels: npt.ArrayLike, *, probes: int = 1, photos: int = 3, seed: int = 0) -> ClosedSetSearch:
    """Draw `probes` images and `photos` OTHER images of each person from labels (N,), alike for alike seeds.

    People with fewer than `probes` + `photos` images are left out. Raises DataError when fewer than two
    remain.
    """
    if probes < 1 or photos < 1:
        raise DataError(f"{probes} probes and {photos} photos a person; expected at least 1 of each")
    index, people = group_index(labels)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(index))
    order = shuffled[np.argsort(index[shuffled], kind="stable")]
    sizes = np.bincount(index, minlength=people)
    starts = (np.cumsum(sizes) - sizes)[sizes >= probes + photos]
    if len(starts) < 2:
        raise DataError(f"{len(starts)} of {people} people have {probes + photos} images or more; expected 2 people")
    rows = order[starts[:, None] + np.arange(probes + photos)].astype(np.int64)
    return ClosedSetSearch(rows[:, :probes].ravel(), rows[:, probes:].ravel())
