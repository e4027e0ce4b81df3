"""How much of what is nearest an approximate index finds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.index import Index


def recall(searched: Index, exact: Index, queries: Tensor, limit: int = 10) -> float:
    """The share of the exact best `limit` of queries (Q,D) that an index finds, in [0,1]; 1 for an empty gallery."""
    found = wanted = 0
    for some, all_of_them in zip(searched.search(queries, limit), exact.search(queries, limit), strict=True):
        truth = {match.key for match in all_of_them}
        wanted += len(truth)
        found += len(truth & {match.key for match in some})
    return found / wanted if wanted else 1.0


def gallery_recall(searched: Index, gallery: Gallery, *, queries: int = 100, limit: int = 10) -> float:
    """The share of the `limit` nearest other templates that an index finds for templates of its own gallery, in [0,1].

    Faces' ids are random, so the first ones are a random sample. The truth comes from one pass over the gallery in
    float32; nothing but the batch at hand is held. 1 for a gallery of at most one template.
    """
    _, batches = gallery.snapshot()
    asked, probes = next(((faces[:queries], templates[:queries]) for faces, templates in batches), ([], None))
    if probes is None:
        return 1.0
    nearest: list[list[tuple[float, str]]] = [[] for _ in asked]
    _, batches = gallery.snapshot()
    for faces, templates in batches:
        scores = F.normalize(probes) @ F.normalize(templates).T
        for row, own in enumerate(asked):
            best = scores[row].topk(min(limit + 1, len(faces)))
            found = [(score, faces[place]) for score, place in zip(*map(Tensor.tolist, best), strict=True)]
            nearest[row] = sorted(nearest[row] + [one for one in found if one[1] != own], reverse=True)[:limit]
    truth = [{face for _, face in row} for row in nearest]
    matches = searched.search(probes, limit + 1)
    hits = sum(len(true & {match.key for match in some}) for true, some in zip(truth, matches, strict=True))
    wanted = sum(map(len, truth))
    return hits / wanted if wanted else 1.0


__all__ = ["gallery_recall", "recall"]
