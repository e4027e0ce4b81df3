"""One attack on a labelled set, measured as an audit does, without its control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ppfr.attacks.base import Attack, Result
from ppfr.attacks.metrics import FaceEmbedder, Figure, MetricContext, Truth
from ppfr.attacks.observation import observe
from ppfr.attacks.public_data import PublicFaces
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.metrics.identification import draw_search
from ppfr.methods import Method


@dataclass(frozen=True)
class Trial:
    """What an attack got of one query from each person, and its figures by name."""

    truth: Truth
    result: Result
    figures: Mapping[str, Figure]


def tried(
    attack: Attack[Any],
    target: Method,
    faces: FaceSet,
    *,
    judge: FaceEmbedder | None = None,
    public: PublicFaces | FaceSet | None = None,
    photos: int = 3,
    people: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Trial:
    """Attack one query from each person, searched among `photos` other images of each."""
    search = draw_search(faces.labels, photos=photos, seed=seed)
    probes, gallery = search.probes[:people], search.gallery[: None if people is None else people * photos]
    truth = Truth(
        to_tensor(faces.images(probes)),
        faces.labels[probes],
        to_tensor(faces.images(gallery)),
        faces.labels[gallery],
        seed,
    )
    prepared = attack.prepare(target, faces=public, budget="fast", seed=seed, **options)
    attacker = prepared.attacker
    generator = torch.Generator().manual_seed(seed)
    sees, each = attacker.threat.sees, attacker.payloads_per_image
    result = prepared([observe(target, truth.originals, sees, generator) for _ in range(each)])
    return Trial(truth, result, result.measure(MetricContext(truth, judge)))
