"""Heterogeneous face recognition: probes of one modality against a gallery of another, fold by fold.

Definitions follow the evaluation of PrivacyHFR (2024; recorded in its golden numbers): Rank-1 is the share of probes
whose most similar gallery person is their own; one ROC over all comparisons of a probe with a person gives VR@FAR (the
verification rate, elsewhere called TAR) at the largest FAR not above the target, AUC and EER.

Two cases which that evaluation leaves open have stated rules here. A person with several gallery photos is as similar
as the best of them, in Rank-1 and in the ROC: each probe is compared once with each person. A probe whose person has
no gallery photo counts nowhere; `ppfr.data.protocols.fold_tests` names and counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ppfr.data.protocols.fold_tests import FoldTest, ProtocolTest
from ppfr.evaluation.evaluate import BATCH_SIZE, Model, Progress, embed_faces
from ppfr.evaluation.metrics.identification import pool_similarities, rank_hits
from ppfr.evaluation.metrics.roc import roc_of_parts
from ppfr.evaluation.metrics.statistics import Floats
from ppfr.evaluation.metrics.verification import Embeddings, as_embeddings, unit_rows
from ppfr.util.errors import DataError

FARS = (1e-2, 1e-3, 1e-4)
_TILE = 2048


@dataclass(frozen=True, kw_only=True)
class FoldFigures:
    """How well the probes of one fold find their people; rates in [0, 1].

    `people` are enrolled with `photos`; `unmatched` probes had nobody to find and are left out of all figures.
    `vr` maps each FAR target to the verification rate; `unresolved` are the targets below one false accept among the
    `impostor` comparisons, where the rate is that of no false accept at all.
    """

    fold: int
    probes: int
    people: int
    photos: int
    unmatched: int
    genuine: int
    impostor: int
    rank1: float
    vr: dict[float, float]
    unresolved: tuple[float, ...]
    auc: float
    eer: float

    def rates(self) -> dict[str, float]:
        """Every rate under the name that tables give it."""
        verification = {f"VR@FAR={100 * far:g}%": rate for far, rate in self.vr.items()}
        return {"Rank-1": self.rank1, **verification, "AUC": self.auc, "EER": self.eer}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; FAR targets become strings."""
        return asdict(self) | {"vr": {f"{far:g}": rate for far, rate in self.vr.items()}}


@dataclass(frozen=True)
class HeterogeneousFigures:
    """The figures of all folds, and what to call their source; `simulated` says that a modality was computed."""

    title: str
    simulated: bool
    folds: list[FoldFigures]

    def mean(self) -> dict[str, float]:
        """Mean of each rate over the folds."""
        return {name: float(np.mean(values)) for name, values in self._columns().items()}

    def deviation(self) -> dict[str, float] | None:
        """Standard deviation (n - 1) of each rate over the folds; None for one fold.

        The folds of a protocol share images, so this is no standard error of the mean.
        """
        if len(self.folds) < 2:
            return None
        return {name: float(np.std(values, ddof=1)) for name, values in self._columns().items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.title,
            "simulated": self.simulated,
            "folds": [fold.to_dict() for fold in self.folds],
            "mean": self.mean(),
            "deviation": self.deviation(),
        }

    def _columns(self) -> dict[str, list[float]]:
        rates = [fold.rates() for fold in self.folds]
        return {name: [rate[name] for rate in rates] for name in rates[0]}


def evaluate_folds(
    model: Model,
    test: ProtocolTest,
    folds: Sequence[FoldTest] | None = None,
    *,
    fars: Sequence[float] = FARS,
    batch_size: int = BATCH_SIZE,
    flip: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[FoldFigures]:
    """Figures of `folds` (all of the test's), one model for all of them; see `match` for the arithmetic.

    Gallery and probes alike go through `embed_faces`, each image once however many folds use it. Raises what that and
    `match` raise.
    """
    folds = test.folds if folds is None else folds
    used = np.unique(np.concatenate([rows for fold in folds for rows in (fold.gallery, fold.probes)]))
    embeddings = embed_faces(model, test.faces, used, batch_size=batch_size, flip=flip, seed=seed, progress=progress)
    figures = []
    for fold in folds:
        gallery, probes = (np.searchsorted(used, rows) for rows in (fold.gallery, fold.probes))
        figures.append(
            match(
                embeddings[probes],
                test.faces.labels[fold.probes],
                embeddings[gallery],
                test.faces.labels[fold.gallery],
                fars=fars,
                fold=fold.number,
                unmatched=len(fold.unmatched),
            )
        )
    return figures


def match(
    probes: Embeddings,
    probe_people: npt.ArrayLike,
    gallery: Embeddings,
    gallery_people: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    fold: int = 1,
    unmatched: int = 0,
) -> FoldFigures:
    """Compare probes (P, D) with the people of a gallery (G, D), by cosine; labels (P,) and (G,).

    Where several people are equally similar, Rank-1 counts each order of them alike. Eight bytes a comparison are
    held, nothing else grows with P times G. Raises DataError for a probe whose person is not in the gallery, for a
    gallery of one person, and for embeddings and FAR targets as `identification` does.
    """
    left, right = (
        unit_rows(as_embeddings(part, name), name) for part, name in ((probes, "probes"), (gallery, "gallery"))
    )
    wanted, known = np.asarray(probe_people), np.asarray(gallery_people)
    if left.shape[1] != right.shape[1] or wanted.shape != left.shape[:1] or known.shape != right.shape[:1]:
        raise DataError(
            f"probes {left.shape} with {wanted.shape} labels, gallery {right.shape} with {known.shape}; "
            "expected (P, D), (P,), (G, D), (G,)"
        )
    if not all(0 < far < 1 for far in fars):
        raise DataError(f"FAR targets are {list(fars)}; expected rates between 0 and 1, such as 0.001")
    people = np.unique(known)
    own = np.searchsorted(people, wanted)
    absent = np.setdiff1d(wanted, people)
    if absent.size or len(people) < 2:
        trouble = f"{absent.size} probe people, among them {absent[0]!r}, are not in it" if absent.size else "too few"
        raise DataError(f"the gallery holds {len(people)} people: {trouble}; expected every probe's person and another")
    hits = np.empty(len(left))
    genuine = np.empty(len(left))
    impostor = np.empty((len(left), len(people) - 1))
    for start in range(0, len(left), _TILE):
        rows = slice(start, start + _TILE)
        similar = pool_similarities(left[rows] @ right.T, known, people, "max")
        hits[rows] = rank_hits(similar, own[rows], (1,))[1]
        genuine[rows], impostor[rows] = _split(similar, own[rows])
    curve = roc_of_parts(genuine, impostor.ravel())
    return FoldFigures(
        fold=fold,
        probes=len(left),
        people=len(people),
        photos=len(right),
        unmatched=unmatched,
        genuine=genuine.size,
        impostor=impostor.size,
        rank1=float(hits.mean()),
        vr={float(far): curve.tar_at(far) for far in fars},
        unresolved=tuple(float(far) for far in fars if far * impostor.size < 1),
        auc=curve.auc,
        eer=curve.eer,
    )


def _split(similar: Floats, own: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """The similarity (P,) to the own person and (P, K - 1) to the others."""
    mine = np.zeros(similar.shape, np.bool_)
    mine[np.arange(len(own)), own] = True
    return similar[mine], similar[~mine].reshape(len(own), -1)
