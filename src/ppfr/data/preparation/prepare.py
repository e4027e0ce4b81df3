"""From photographs to a set of aligned faces, with a report of what was left out; goes on after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ppfr.data.detection.detector import Detector
from ppfr.data.formats.writers import FORMATS, NamedImage, SetDraft, Writer, file_name, format_suffix
from ppfr.data.images import Source, usable_cores
from ppfr.data.preparation.cutting import CutFaces, CutPhotograph, Cutter, cut_photographs
from ppfr.data.preparation.photographs import Photograph, Photographs, open_photographs
from ppfr.data.preparation.report import PreparationReport
from ppfr.data.preparation.thumbnails import draw_sheet
from ppfr.distributed.bulk import BulkJob
from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write, in_repository
from ppfr.util.progress import track

_CHUNK = 128
PREPARE_FORMATS = {"folder": "", "parquet": ".parquet", "tfrecord": ".txt"}
"""Formats and the suffixes of their sets."""


@dataclass
class Preparation:
    """What `prepare` did.

    `model` is the SHA-256 of the detector's weights; `refused` counts reasons, `ignored` files of other suffixes;
    `thumbnails` is a picture of what was refused, or says why there is none; `resumed_at` counts photographs that had
    been looked at before this run.
    """

    source: str
    target: str
    format: str
    detector: str
    model: str
    size: int
    smallest: float
    photographs: int
    crops: int
    people: int
    refused: dict[str, int]
    ignored: dict[str, int]
    report: str
    thumbnails: str
    resumed_at: int = 0
    seconds: float = 0.0


def prepare(
    source: Source,
    target: Source,
    open_detector: Callable[[], Detector],
    cut: Cutter | None = None,
    *,
    format: str | None = None,
    workers: int | None = None,
    chunk: int = _CHUNK,
    ranks: Ranks = Ranks(),
) -> Preparation:
    """Turn the photographs of `source` (see `open_photographs`) into a set of aligned faces, `target`.

    `format` is folder, parquet or tfrecord, by default that of the suffix of `target`. Each of `workers` threads, by
    default one a core, has a detector of its own from `open_detector`. The work is done in parts of `chunk`
    photographs, of which every rank takes its share; when all are there, the first rank joins them. The set and its
    report depend on photographs and settings only, not on threads and ranks. Beside the set lies NAME.prepared:
    `summary.json`; `faces.csv`, where each crop comes from; `refused.csv`, what gave none and why, with thumbnails of
    it in `refused.png` unless that folder belongs to a Git repository. Until all is written, parts and set lie in a
    hidden folder beside `target`, where a run that was stopped, even killed, goes on. Raises DataError when the
    target exists, lies in the source or cannot hold the people's names, and when no face is left.
    """
    began = time.monotonic()
    photos, cut = open_photographs(source), cut or Cutter()
    goal, kind = _goal(Path(target).expanduser().absolute(), format)
    if not photos.listed and goal.is_relative_to(photos.root):
        raise DataError(f"{goal}: lies among the photographs, and the next run would take crops for such")
    kind.check(sorted({*(photo.identity for photo in photos.photos), *cut.choose.identities}))
    operator = CutFaces(photos, cut, open_detector, workers or _own_cores())
    plan = _plan(operator, kind)
    place = goal.parent / f"{goal.stem if goal.suffix in FORMATS else goal.name}.prepared"
    work = goal.parent / f".{goal.name}.preparing"
    draft = SetDraft(work, goal, kind, [place.name])
    job = BulkJob(work, len(photos.photos), chunk, ranks)
    with job.begun(plan):
        if not draft.written:
            job.apply(operator, f"{goal.name}: looking for faces")
            ranks.on_first(lambda: _write(str(source), operator, job, draft, place))
        ranks.on_first(draft.publish)
    summary = json.loads((place / "summary.json").read_bytes())
    return Preparation(**summary, resumed_at=job.done_before, seconds=time.monotonic() - began)


def _own_cores() -> int:
    """Cores for this process where torchrun started several on the machine."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _plan(operator: CutFaces, kind: type[Writer]) -> dict[str, object]:
    """A description that differs for other photographs and for settings under which they would give other crops."""
    detector, cut = operator.detectors[0], operator.cut
    digest = hashlib.sha256()
    for photo in operator.photos.photos:
        path = operator.photos.path(photo)
        found = path.stat() if path.exists() else None
        digest.update(repr((*photo, found and (found.st_size, found.st_mtime_ns))).encode(errors="surrogateescape"))
    return {
        "detector": [detector.name, detector.model],
        "choice of faces": cut.choose.key,
        "size": cut.size,
        "smallest face": cut.smallest,
        "format": kind.title,
        "photographs": digest.hexdigest(),
    }


def _write(source: str, operator: CutFaces, job: BulkJob, draft: SetDraft, place: Path) -> None:
    """Write the set and its report from the parts; raises DataError when there is no face in any."""
    photos, names = operator.photos, _CropNames()
    with draft.writer() as writer:
        report = PreparationReport(draft.folder / place.name)
        try:
            for rows, table in track(job.results(), f"{draft.target.name}: writing", job.count):
                for row, found in zip(rows.tolist(), cut_photographs(rows, table), strict=True):
                    _add(photos.photos[row], found, names, writer, report)
        finally:
            report.close()
        reasons = dict(Counter(line.reason for line in report.refused).most_common())
        if not names.crops:
            job.remove()
            listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            raise DataError(f"{source}: none of {len(photos.photos):,} photographs gives a face; {listed}")
        done = Preparation(
            source=source,
            target=str(draft.target),
            format=draft.kind.title,
            detector=operator.detectors[0].name,
            model=operator.detectors[0].model,
            size=operator.cut.size,
            smallest=operator.cut.smallest,
            photographs=len(photos.photos),
            crops=names.crops,
            people=names.people,
            refused=reasons,
            ignored=photos.ignored,
            report=str(place),
            thumbnails=_draw_refused(photos, report, place),
        )
        summary = {name: value for name, value in asdict(done).items() if name not in ("resumed_at", "seconds")}
        atomic_write(report.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _draw_refused(photos: Photographs, report: PreparationReport, place: Path) -> str:
    """Draw what was refused; the path of the picture, or why there is none."""
    if not report.refused:
        return "nothing was refused"
    if in_repository(place.parent):
        return f"not drawn: {place.parent} belongs to a Git repository, which should hold no faces"
    draw_sheet(report.folder / "refused.png", photos, report.refused)
    return str(place / "refused.png")


def _goal(target: Path, format: str | None) -> tuple[Path, type[Writer]]:
    """The set's name, with the suffix of its format, and the writer."""
    suffix = format_suffix(target)
    if format is not None:
        if format not in PREPARE_FORMATS:
            raise DataError(f"format is {format!r}; expected one of {', '.join(PREPARE_FORMATS)}")
        if suffix and suffix != PREPARE_FORMATS[format]:
            raise DataError(f"{target}: has the suffix of another format than {format}; leave it out or the format")
        if not suffix:
            suffix = PREPARE_FORMATS[format]
            target = target.with_name(target.name + suffix)
    return target, FORMATS[suffix]


def _add(photo: Photograph, found: CutPhotograph, names: _CropNames, writer: Writer, report: PreparationReport) -> None:
    for crop in found.crops:
        identity = crop.choice.identity
        name = names.take(identity, photo)
        writer.add(NamedImage(name, identity, names.label(identity), crop.jpeg))
        report.add(name, photo.name, crop.choice)
    for refusal in found.refused:
        report.refuse(photo.name, refusal)


class _CropNames:
    """Names `IDENTITY/FILE.jpg` for crops, no two alike even where case does not count, and labels by appearance."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._labels: dict[str, int] = {}

    @property
    def crops(self) -> int:
        return len(self._taken)

    @property
    def people(self) -> int:
        return len(self._labels)

    def label(self, identity: str) -> int:
        return self._labels.setdefault(identity, len(self._labels))

    def take(self, identity: str, photo: Photograph) -> str:
        """The photograph's own name as far as it can be a file's, with a number where it is taken."""
        stem = f"{identity}/{file_name(PurePosixPath(photo.name).stem)}"
        name, number = f"{stem}.jpg", 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        self._taken.add(name.casefold())
        return name
