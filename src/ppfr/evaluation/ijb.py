"""IJB-B and IJB-C: sets of images as templates, millions of template pairs (1:1) and search in a gallery (1:N).

A template is the set of images and video frames that one comparison may use of a person. Its feature is made as in the
evaluation of Whitelam et al. (IARPA Janus Benchmark-B, CVPRW 2017) that InsightFace and TFace share: images scaled to
unit length, averaged over each medium (a photo or a video), summed over the media and scaled to unit length again.
Images are scaled in float32 and everything after that is float64, as there: rounding to float32 would put some impostor
pairs on the other side of a genuine one, and a TPR at one in a million shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ppfr.evaluation.metrics.identification import rank_hits
from ppfr.evaluation.metrics.roc import FarRule, Roc, roc_of_parts
from ppfr.evaluation.metrics.statistics import Bools, Floats, as_plain
from ppfr.util.errors import DataError

Rows = npt.NDArray[np.int32]
Halves = Literal["whole", "first", "sum"]

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (1e-2, 1e-1)

# similarities of a block of templates with all others stay in the last cache: 25 MB at IJB-B's 12,115 templates
_CHUNK = 256
# images taken together: 16 MB of features of 512
_IMAGES = 4096
# ids up to this many times their number are looked up in a table instead of by bisection
_TABLE_FACTOR = 64


# --- templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemplateFeatures:
    """Features (T, D) float64 of unit length, and the template numbers `ids` (T,) they belong to, rising."""

    ids: npt.NDArray[np.int64]
    features: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: npt.ArrayLike) -> Rows:
        """Where template numbers (P,) stand in `features`; raises DataError naming one that has no images."""
        wanted = np.asarray(ids)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise DataError(f"template numbers are {wanted.dtype} {wanted.shape}; expected integers (P,)")
        if not wanted.size:
            return np.empty(0, np.int32)
        low, high = int(self.ids[0]), int(self.ids[-1])
        inside = low <= int(wanted.min()) and int(wanted.max()) <= high
        if inside and high - low < _TABLE_FACTOR * len(self.ids):
            table = np.full(high - low + 1, -1, np.int32)
            table[self.ids - low] = np.arange(len(self.ids), dtype=np.int32)
            rows: Rows = table[wanted - low]
        else:
            rows = np.searchsorted(self.ids, wanted).astype(np.int32)
            rows[self.ids[np.minimum(rows, len(self.ids) - 1)] != wanted] = -1
        if rows.min() < 0:
            unknown = np.unique(wanted[rows < 0])
            raise DataError(f"{unknown.size} templates have no images, among them {unknown[0]}; expected some of each")
        return rows


def template_features(
    features: npt.ArrayLike,
    templates: npt.ArrayLike,
    medias: npt.ArrayLike,
    *,
    halves: Halves = "whole",
    keep_norms: bool = False,
    weights: npt.ArrayLike | None = None,
) -> TemplateFeatures:
    """Aggregate image features (N, D) into one feature for each template, given template and medium (N,) of each image.

    `halves` says what D holds: "whole" one feature; "first" and "sum" an image's and its mirror image's side by side,
    of which the first half is used or the sum of both (the flip test). Images count alike, or with `keep_norms` as
    much as their features are long, and `weights` (N,), such as a detector's scores, multiply them (InsightFace's
    TestModes F, N and D). Raises DataError for shapes that do not belong together, values that are not finite, and
    images or templates whose feature is zero.
    """
    values = np.asarray(features)
    if values.ndim != 2 or not values.size or values.dtype.kind != "f":
        raise DataError(f"features are {values.dtype} {values.shape}; expected floats (N, D)")
    where, media = (np.asarray(part) for part in (templates, medias))
    for name, part in (("templates", where), ("medias", media)):
        if part.shape != values.shape[:1] or part.dtype.kind not in "iu":
            raise DataError(f"{name} are {part.dtype} {part.shape} for {len(values)} features; expected integers (N,)")
    ids, row = np.unique(where, return_inverse=True)
    share = _medium_shares(row, media)
    if weights is not None:
        factors = np.asarray(weights, np.float64)
        if factors.shape != share.shape or not (np.isfinite(factors) & (factors >= 0)).all():
            raise DataError(f"weights have shape {factors.shape}; expected {share.shape}, none negative or not finite")
        share *= factors
    take = _halver(values.shape[1], halves)
    order = np.argsort(row, kind="stable")
    ends = np.cumsum(np.bincount(row))
    sums: list[Floats] = []
    first = start = 0
    while first < len(ids):
        last = max(first + 1, int(np.searchsorted(ends, start + _IMAGES, side="right")))
        images = order[start : ends[last - 1]]
        scaled = _scaled(take(values[images]), images, keep_norms)
        mixing = csr_array((share[images], (row[images] - first, np.arange(len(images)))), (last - first, len(images)))
        sums.append(mixing @ scaled.astype(np.float64))
        first, start = last, int(ends[last - 1])
    total = np.concatenate(sums)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"the images of template {ids[int(np.argmin(lengths))]} cancel out: its feature is zero")
    total /= lengths
    return TemplateFeatures(ids.astype(np.int64), total)


def _halver(columns: int, halves: Halves) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """A function that takes one feature out of `columns` numbers."""
    if halves not in ("whole", "first", "sum"):
        raise DataError(f"halves is {halves!r}; expected 'whole', 'first' or 'sum'")
    middle, odd = divmod(columns, 2)
    if odd and halves != "whole":
        raise DataError(f"features have {columns} columns; expected two halves of one size")
    if halves == "whole":
        return lambda values: values
    if halves == "first":
        return lambda values: values[:, :middle]
    return lambda values: values[:, :middle] + values[:, middle:]


def _scaled(values: npt.NDArray[Any], images: npt.NDArray[np.intp], keep_norms: bool) -> npt.NDArray[Any]:
    """Features of `images` in unit length unless `keep_norms`, in the precision that they have."""
    lengths = np.sqrt(np.sum(values**2, axis=1, keepdims=True))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if bad.size:
        raise DataError(f"the feature of image {images[bad[0]]} is zero or not finite, as are {bad.size - 1} beside it")
    return values if keep_norms else values / lengths


def _medium_shares(row: npt.NDArray[np.intp], media: npt.NDArray[Any]) -> Floats:
    """One over the number of images (N,) that share an image's template and medium."""
    order = np.lexsort((media, row))
    fresh = np.append(True, (np.diff(row[order]) != 0) | (np.diff(media[order]) != 0))
    group = np.cumsum(fresh) - 1
    shares = np.empty(len(row))
    shares[order] = 1 / np.bincount(group)[group]
    return shares


# --- 1:1 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemplateVerification:
    """How well genuine and impostor template pairs are distinguished; rates in [0, 1].

    `tpr` maps each FPR target to the rate of genuine pairs accepted, `fpr` and `threshold` to the point of the ROC it
    was read at: by `rule` the nearest FPR (what published tables use) or the largest not above the target. Equal
    impostor scores make no points of their own between two genuine ones, as some of them do in scikit-learn.
    `unresolved` are the targets below one false accept among the `impostor` pairs.
    """

    pairs: int
    genuine: int
    impostor: int
    tpr: dict[float, float]
    fpr: dict[float, float]
    threshold: dict[float, float]
    unresolved: tuple[float, ...]
    rule: FarRule
    auc: float
    eer: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; FPR targets become strings."""
        return {name: as_plain(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        rates = ", ".join(
            f"TPR@FPR={far:g} {rate:.2%}" + (" (unresolved)" if far in self.unresolved else "")
            for far, rate in self.tpr.items()
        )
        return f"{rates}, AUC {self.auc:.4f}; {self.genuine:,} genuine, {self.impostor:,} impostor template pairs"


def verify_templates(
    templates: TemplateFeatures,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    fprs: Sequence[float] = FPRS,
    rule: FarRule = "nearest",
) -> TemplateVerification:
    """Score pairs of template numbers (P,), one person's where `same` (P,) is 1, and read TPRs off their ROC.

    Raises DataError as `pair_scores` does, and without genuine or without impostor pairs.
    """
    return template_rates(pair_scores(templates, first, second), same, fprs=fprs, rule=rule)


def template_rates(
    scores: npt.ArrayLike, same: npt.ArrayLike, *, fprs: Sequence[float] = FPRS, rule: FarRule = "nearest"
) -> TemplateVerification:
    """The figures of pairs whose scores (P,) are known, higher meaning more alike; see `verify_templates`."""
    targets = tuple(float(fpr) for fpr in fprs)
    if not all(0 < fpr < 1 for fpr in targets):
        raise DataError(f"FPR targets are {list(targets)}; expected rates between 0 and 1, such as 1e-4")
    values, truth = np.asarray(scores), _truth(same)
    if values.shape != truth.shape:
        raise DataError(f"{values.shape} scores for {truth.shape} labels; expected (P,) of each")
    if truth.all() or not truth.any():
        raise DataError(f"none of {truth.size} pairs is {'impostor' if truth.all() else 'genuine'}; expected both")
    curve: Roc = roc_of_parts(values[truth], values[~truth])
    points = {fpr: curve.index_at(fpr, rule) for fpr in targets}
    return TemplateVerification(
        pairs=len(values),
        genuine=curve.genuine,
        impostor=curve.impostor,
        tpr={fpr: float(curve.tar[point]) for fpr, point in points.items()},
        fpr={fpr: float(curve.far[point]) for fpr, point in points.items()},
        threshold={fpr: float(curve.thresholds[point]) for fpr, point in points.items()},
        unresolved=tuple(fpr for fpr in targets if fpr * curve.impostor < 1),
        rule=rule,
        auc=curve.auc,
        eer=curve.eer,
    )


def _truth(same: npt.ArrayLike) -> Bools:
    truth = np.asarray(same)
    if truth.dtype != np.bool_:
        if truth.size and (truth.dtype.kind not in "iuf" or not ((truth == 0) | (truth == 1)).all()):
            raise DataError("labels hold other values than 0 and 1")
        truth = truth.astype(np.bool_)
    return truth


def pair_scores(templates: TemplateFeatures, first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Cosine similarities (P,) of pairs of template numbers.

    All similarities of a block of templates with the others come from one matrix product, from which the pairs are
    picked: far cheaper than gathering two rows of features for every pair, as long as pairs are many. Raises DataError
    for numbers without images and lists of different lengths.
    """
    left, right = templates.rows(first), templates.rows(second)
    if left.shape != right.shape:
        raise DataError(f"{left.size} first and {right.size} second templates; expected as many of each")
    scores = np.empty(len(left))
    if not scores.size:
        return scores
    (left, lefts), (right, rights) = _cheapest(templates, left, right)
    blocks = left // _CHUNK
    # 16 bits: NumPy then sorts by radix, in a tenth of the time
    order = np.argsort(blocks.astype(np.min_scalar_type(int(blocks.max()))), kind="stable")
    ends = np.cumsum(np.bincount(blocks))
    for block, part in enumerate(np.split(order, ends[:-1])):
        if not len(part):
            continue
        start, columns = block * _CHUNK, right[part]
        low, high = int(columns.min()), int(columns.max()) + 1
        similarities = lefts[start : start + _CHUNK] @ rights[low:high].T
        scores[part] = similarities[left[part] - start, columns - low]
    return scores


def _cheapest(templates: TemplateFeatures, left: Rows, right: Rows) -> tuple[tuple[Rows, Floats], tuple[Rows, Floats]]:
    """Pairs as rows of the features needed on either side, sides exchanged where that saves arithmetic.

    A list of galleries against probes needs a rectangle of the matrix of similarities, pairs at random need all of it,
    of which one triangle is enough.
    """
    count = len(templates)
    used = [np.bincount(rows, minlength=count) > 0 for rows in (left, right)]
    either = used[0] | used[1]
    if 2 * int(used[0].sum()) * int(used[1].sum()) > int(either.sum()) ** 2:
        left, right = np.minimum(left, right), np.maximum(left, right)
        used = [either, either]
    compact = [(np.cumsum(mask, dtype=np.int32) - 1, templates.features[mask]) for mask in used]
    return (compact[0][0][left], compact[0][1]), (compact[1][0][right], compact[1][1])


# --- 1:N -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TemplateSearch:
    """How well probe templates find their subject in a gallery; rates in [0, 1].

    `rank` maps k to the share of the `mated` probes (those whose subject is enrolled) whose subject is among the k most
    similar. `tpir` maps each FPIR target to the share of mated probes whose own subject reaches the threshold
    (`threshold`) at which no more than that share of the `nonmated` probes finds anybody; None without such probes.
    `unresolved` are the targets below one of the non-mated probes.
    """

    probes: int
    mated: int
    nonmated: int
    subjects: int
    rank: dict[int, float]
    tpir: dict[float, float | None]
    threshold: dict[float, float | None]
    unresolved: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ranks and FPIR targets become strings."""
        return {name: as_plain(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        ranks = [f"Rank-{k} {rate:.2%}" for k, rate in self.rank.items()]
        found = [f"TPIR@FPIR={fpir:g} {rate:.2%}" for fpir, rate in self.tpir.items() if rate is not None]
        return f"{', '.join(ranks + found)}; {self.mated:,} mated, {self.nonmated:,} non-mated probes"


def search_templates(
    templates: TemplateFeatures,
    probes: npt.ArrayLike,
    probe_subjects: npt.ArrayLike,
    gallery: npt.ArrayLike,
    gallery_subjects: npt.ArrayLike,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> TemplateSearch:
    """Look for probe templates (P,) among gallery templates (G,), with the subject of each.

    A subject with several gallery templates is as similar as the best of them. TPIR and FPIR are those of open-set
    search (Grother and Ngan, NIST IR 8009), without a limit on the rank: InsightFace's `ijb_1n.py` instead takes the
    threshold from all impostor comparisons together, which is laxer. Raises DataError without a mated probe, with
    fewer than two enrolled subjects, and for template numbers without images.
    """
    if not all(0 < fpir < 1 for fpir in fpirs):
        raise DataError(f"FPIR targets are {list(fpirs)}; expected rates between 0 and 1, such as 0.01")
    who, known = np.asarray(probe_subjects), np.asarray(gallery_subjects)
    wanted, enrolled = templates.rows(probes), templates.rows(gallery)
    if who.shape != wanted.shape or known.shape != enrolled.shape:
        raise DataError(
            f"{who.shape} subjects for {wanted.shape} probes, {known.shape} for {enrolled.shape} gallery templates; "
            "expected one each"
        )
    subjects, person = np.unique(known, return_inverse=True)
    if len(subjects) < 2:
        raise DataError(f"the gallery holds {len(subjects)} subjects; expected at least 2")
    mated = np.isin(who, subjects)
    if not mated.any():
        raise DataError(f"none of {len(who)} probes shows one of the {len(subjects)} enrolled subjects")
    order = np.argsort(person, kind="stable")
    photos, starts = templates.features[enrolled[order]], np.searchsorted(person[order], np.arange(len(subjects)))
    own = np.searchsorted(subjects, who)
    hits: dict[int, list[Floats]] = {int(k): [] for k in ranks}
    mine, best = [], []
    for start in range(0, len(wanted), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similar = np.maximum.reduceat(templates.features[wanted[rows]] @ photos.T, starts, axis=1)
        there = mated[rows]
        for k, hit in rank_hits(similar[there], own[rows][there], ranks).items():
            hits[k].append(hit)
        mine.append(similar[there, own[rows][there]])
        best.append(similar[~there].max(axis=1))
    scores, strangers = np.concatenate(mine), np.sort(np.concatenate(best))[::-1]
    thresholds = {float(fpir): _fpir_threshold(strangers, fpir) for fpir in fpirs}
    return TemplateSearch(
        probes=len(who),
        mated=len(scores),
        nonmated=len(strangers),
        subjects=len(subjects),
        rank={k: float(np.concatenate(parts).mean()) for k, parts in hits.items()},
        tpir={fpir: None if at is None else float((scores > at).mean()) for fpir, at in thresholds.items()},
        threshold=thresholds,
        unresolved=tuple(float(fpir) for fpir in fpirs if fpir * len(strangers) < 1),
    )


def _fpir_threshold(strangers: Floats, fpir: float) -> float | None:
    """The score above which at most the share `fpir` of falling best scores lies; None without any."""
    if not len(strangers):
        return None
    return float(strangers[int(fpir * len(strangers))])
