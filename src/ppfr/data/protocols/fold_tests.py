"""The test of a heterogeneous protocol: whose photos are enrolled and which images look for them, fold by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppfr.data.faceset import FaceSet, Indices, Skipped
from ppfr.data.formats.loading import CACHE_BYTES, load_listing
from ppfr.data.images import FACE_SIZE
from ppfr.data.protocols.heterogeneous import Heterogeneous, ListFile, list_entries
from ppfr.util.errors import DataError


@dataclass(frozen=True)
class FoldTest:
    """Who looks for whom in one fold: indices of the gallery's photos (G,) and of the probes (P,) in the test's images.

    `unmatched` names the probes whose identity has no usable gallery photo. They are not among `probes`: nobody could
    find them, so a Rank-1 would count the missing photo and not the recogniser, and a ROC would hold their impostor
    comparisons without any genuine one.
    """

    number: int
    gallery: Indices
    probes: Indices
    unmatched: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class ProtocolTest:
    """The images of all folds asked for, each once, and what each fold does with them."""

    source: Heterogeneous
    faces: FaceSet
    folds: list[FoldTest]

    @property
    def left_out(self) -> list[Skipped]:
        """Everything that the lists name and no figure counts."""
        return [
            *self.source.incomplete,
            *self.faces.skipped,
            *(probe for fold in self.folds for probe in fold.unmatched),
        ]


def open_test(
    source: Heterogeneous,
    folds: Sequence[int] | None = None,
    *,
    size: int = FACE_SIZE,
    strict: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> ProtocolTest:
    """Open gallery and probes of `folds` (all complete ones, or the one that the source names).

    An image that several folds use is decoded once. Missing and broken images and refused lines are in
    `.faces.skipped`, probes without a gallery photo in each fold's `.unmatched`. Raises DataError for a fold that is
    not there or in which no probe is left, and with `strict` for anything that is left out.
    """
    if folds is None:
        folds = source.folds if source.chosen is None else (source.chosen,)
    if strict and source.incomplete:
        raise DataError(f"{source.incomplete[0].path}: {source.incomplete[0].reason}; refused under strict")
    lists = {number: (source.read("gallery", number), source.read("probe", number)) for number in folds}
    files = [file for pair in lists.values() for file in pair]
    _check_identities(source, files)
    numbers = ", ".join(map(str, folds))
    faces = load_listing(
        f"{source.title} fold{'' if len(folds) == 1 else 's'} {numbers} (test)",
        list_entries(source.root, files),
        size=size,
        strict=strict,
        cache_bytes=cache_bytes,
    )
    row = {name: index for index, name in enumerate(faces.names)}
    tests = [_fold_test(source, number, gallery, probes, row) for number, (gallery, probes) in lists.items()]
    if strict and (unmatched := [probe for test in tests for probe in test.unmatched]):
        raise DataError(
            f"{faces.name}: {len(unmatched)} probes refused under strict; {unmatched[0].path}: {unmatched[0].reason}"
        )
    return ProtocolTest(source, faces, tests)


def _check_identities(source: Heterogeneous, files: Sequence[ListFile]) -> None:
    known: dict[str, str] = {}
    for entry in (entry for file in files for entry in file.entries):
        if known.setdefault(entry.path, entry.identity) != entry.identity:
            raise DataError(
                f"{source.lists}: {entry.path} is {known[entry.path]} in one list and {entry.identity} in another; "
                "expected one identity an image"
            )


def _fold_test(
    source: Heterogeneous, number: int, gallery: ListFile, probes: ListFile, row: Mapping[str, int]
) -> FoldTest:
    """Rows of a fold's images in the set, given the `row` of each file that could be read."""
    photos, images = (
        [(entry, row[name]) for entry in file.entries if (name := str(source.root / entry.path)) in row]
        for file in (gallery, probes)
    )
    enrolled = {entry.identity for entry, _ in photos}
    matched = [index for entry, index in images if entry.identity in enrolled]
    if not matched:
        raise DataError(
            f"{source.root}, fold {number}: no probe can be looked for; of {len(probes.entries)} probes {len(images)} "
            f"images can be used, of {len(gallery.entries)} gallery photos {len(photos)}"
        )
    unmatched = [
        Skipped(str(source.root / entry.path), f"fold {number}: no gallery photo of {entry.identity}")
        for entry, _ in images
        if entry.identity not in enrolled
    ]
    indices = [np.array(rows, np.int64) for rows in ([index for _, index in photos], matched)]
    return FoldTest(number, indices[0], indices[1], unmatched)
