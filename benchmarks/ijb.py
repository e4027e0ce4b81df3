"""IJB scoring at the size of IJB-B, ours and a straightforward implementation in turn, on the same random features.

Both read the same image features and lists and give TPRs: templates are aggregated, 8 million pairs scored, the ROC
read. The pairs are laid out as IJB's own, every probe against galleries, or drawn from all templates at random, which
needs more of the matrix of similarities. Seconds by the clock and of the processor, and the memory that ours adds.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from ppfr.evaluation.ijb import FPRS, pair_scores, template_features, template_rates

# Whitelam et al. 2017 and the lists of InsightFace: 1,845 gallery and 10,270 probe templates
IMAGES, TEMPLATES, GALLERY, PAIRS = 227_630, 12_115, 1_845, 8_010_270


@dataclass
class Task:
    """Image features (N, D) and what IJB's lists say of them."""

    features: np.ndarray
    templates: np.ndarray
    medias: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


def make_task(scale: float, width: int, layout: str, seed: int = 0) -> Task:
    """Features of subjects with noise, so that genuine scores are higher; a subject has about seven templates."""
    rng = np.random.default_rng(seed)
    images, templates, gallery = (max(2, int(scale * n)) for n in (IMAGES, TEMPLATES, GALLERY))
    pairs = max(2, int(scale**2 * PAIRS))
    subject = np.arange(templates) % gallery
    owner = np.sort(np.append(np.arange(templates), rng.integers(templates, size=images - templates)))
    directions = rng.standard_normal((gallery, width), np.float32)
    features = rng.standard_normal((images, width), np.float32)
    features *= 10
    features += directions[subject[owner]]
    medias = rng.integers(1 << 20, size=templates)[owner] * 8 + rng.integers(8, size=images)
    ids = np.sort(rng.choice(2 * templates, templates, replace=False)) + 1
    # distinct pairs, as in IJB's lists: each probe with its own subject, the others at random
    probe = np.arange(gallery, templates)
    listed = subject[probe] * templates + probe
    others = gallery if layout == "gallery" else templates
    while len(listed) < pairs:
        wanted = 2 * (pairs - len(listed))
        drawn = rng.integers(others, size=wanted) * templates + rng.integers(gallery, templates, wanted)
        listed = np.unique(np.append(listed, drawn[drawn // templates < drawn % templates]))
    listed = rng.permutation(listed)[:pairs]
    other, probe = np.divmod(listed, templates)
    same = subject[other] == subject[probe]
    shuffled = rng.permutation(templates)
    return Task(features, ids[shuffled[owner]], medias, ids[shuffled[other]], ids[shuffled[probe]], same)


def plain(task: Task, clock: Callable[[str], None]) -> dict[float, float]:
    """A loop over templates, a gather of both rows of every pair, scikit-learn's ROC: float64 throughout."""
    unit = task.features / np.linalg.norm(task.features, axis=1, keepdims=True)
    ids = np.unique(task.templates)
    features = np.zeros((len(ids), unit.shape[1]))
    for row, number in enumerate(ids):
        where = np.flatnonzero(task.templates == number)
        medias = task.medias[where]
        features[row] = sum(unit[where[medias == medium]].mean(axis=0) for medium in np.unique(medias))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    clock("aggregation")
    place = np.zeros(ids.max() + 1, np.int64)
    place[ids] = np.arange(len(ids))
    scores = np.empty(len(task.first))
    for start in range(0, len(scores), 100_000):
        part = slice(start, start + 100_000)
        scores[part] = (features[place[task.first[part]]] * features[place[task.second[part]]]).sum(axis=1)
    clock("pair scores")
    fpr, tpr, _ = (values[::-1] for values in roc_curve(task.same, scores))
    rates = {target: float(tpr[np.argmin(np.abs(fpr - target))]) for target in FPRS}
    clock("ROC")
    return rates


def ours(task: Task, clock: Callable[[str], None]) -> dict[float, float]:
    """`ppfr.evaluation.ijb`."""
    templates = template_features(task.features, task.templates, task.medias)
    clock("aggregation")
    scores = pair_scores(templates, task.first, task.second)
    clock("pair scores")
    rates = template_rates(scores, task.same).tpr
    clock("ROC")
    return rates


def timed(score: Callable[[Task, Callable[[str], None]], dict[float, float]], task: Task) -> dict[str, Any]:
    marks = [(time.perf_counter(), time.process_time())]
    names: list[str] = []

    def clock(name: str) -> None:
        names.append(name)
        marks.append((time.perf_counter(), time.process_time()))

    rates = score(task, clock)
    steps = np.diff(np.array(marks), axis=0)
    return {"rates": rates, "names": names, "wall": steps[:, 0], "cpu": steps[:, 1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Share of IJB-B's images and templates.")
    parser.add_argument("--width", type=int, default=512, help="Size of a feature.")
    parser.add_argument("--layout", choices=("gallery", "random"), default="gallery")
    parser.add_argument("--repeats", type=int, default=3, help="Of ours; the plain one runs once.")
    options = parser.parse_args()
    task = make_task(options.scale, options.width, options.layout)
    print(
        f"{len(task.features):,} features of {options.width}, {len(np.unique(task.templates)):,} templates, "
        f"{len(task.first):,} pairs ({task.same.sum():,} genuine), layout {options.layout}\n"
    )

    runs = [timed(ours, task) for _ in range(options.repeats)]
    tracemalloc.start()
    timed(ours, task)
    added = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    given = sum(values.nbytes for values in vars(task).values())
    middle = sorted(runs, key=lambda run: run["wall"].sum())[len(runs) // 2]
    reference = timed(plain, task)
    print(f"{'seconds':<14}{'plain':>9}{'ppfr':>9}{'processor: plain':>20}{'ppfr':>9}")
    for step, name in enumerate(middle["names"]):
        print(
            f"{name:<14}{reference['wall'][step]:>9.2f}{middle['wall'][step]:>9.2f}"
            f"{reference['cpu'][step]:>20.2f}{middle['cpu'][step]:>9.2f}"
        )
    print(
        f"{'in all':<14}{reference['wall'].sum():>9.2f}{middle['wall'].sum():>9.2f}"
        f"{reference['cpu'].sum():>20.2f}{middle['cpu'].sum():>9.2f}\n"
    )
    print(f"memory: {given / 1e9:.2f} GB of input, to which ours adds at most {added / 1e9:.2f} GB of arrays\n")
    print(f"{'TPR at FPR':<14}{'plain':>12}{'ppfr':>12}{'difference':>14}")
    for target, rate in reference["rates"].items():
        mine = middle["rates"][target]
        print(f"{target:<14g}{rate:>12.6f}{mine:>12.6f}{mine - rate:>14.1e}")


if __name__ == "__main__":
    main()
