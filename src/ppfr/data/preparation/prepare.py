"""From photographs to aligned faces: detect, choose, align, write; go on after a stop; tell what was left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from ppfr.data.detection.detector import Detector
from ppfr.data.formats.convert import FORMATS
from ppfr.data.formats.writers import Entry, Writer, file_name
from ppfr.data.images import Source, usable_cores
from ppfr.data.preparation.cutting import Cutter, Outcome
from ppfr.data.preparation.log import PrepareLog, crops_of, refusals_of
from ppfr.data.preparation.photographs import Photograph, Photographs, open_photographs
from ppfr.data.preparation.pieces import load_outcomes, save_outcomes
from ppfr.data.preparation.thumbnails import draw_sheet, in_repository
from ppfr.distributed.pieces import Pieces
from ppfr.distributed.process_group import Ranks
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write
from ppfr.util.opencv import one_thread_each, quiet
from ppfr.util.ordered import in_order
from ppfr.util.progress import progress_callback, track

# photographs of a piece: what is looked at again after a stop
PIECE = 128
PREPARE_FORMATS = {"folder": "", "csv": ".csv", "tfrecord": ".txt"}
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


@dataclass
class _State:
    """How much is written into the set, as it is kept beside the unfinished files."""

    photos: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    log: dict[str, int] = field(default_factory=dict)
    whole: bool = False


def prepare(
    source: Source,
    target: Source,
    open_detector: Callable[[], Detector],
    cut: Cutter | None = None,
    *,
    format: str | None = None,
    workers: int | None = None,
    piece: int = PIECE,
    ranks: Ranks = Ranks(),
) -> Preparation:
    """Turn the photographs of `source` (see `open_photographs`) into a set of aligned faces, `target`.

    `format` is folder, csv or tfrecord, by default what the suffix of `target` says. Each of `workers` threads, by
    default one a core, has a detector of its own from `open_detector`. The work is cut into pieces of `piece`
    photographs, of which every rank takes its share; when all are there, the first rank joins them. The set and its
    report depend on photographs and settings only, not on threads and ranks. Beside the set lies NAME.prepared:
    `summary.json`; `faces.csv`, where each crop comes from; `refused.csv`, what gave none and why, with thumbnails of
    it in `refused.png` unless that folder belongs to a Git repository. Until all is written, pieces and set lie in a
    hidden folder beside `target`, from where a run that was stopped, even killed, goes on. Raises DataError when the
    target exists, lies in the source or cannot hold the people's names, and when no face is left.
    """
    began = time.monotonic()
    photos = open_photographs(source)
    with quiet():
        detectors = [open_detector() for _ in range(workers or _own_cores())]
    run = _Run(photos, Path(target).expanduser().absolute(), format, detectors, cut or Cutter(), piece, ranks)
    # nothing gets its name before every rank has looked
    ranks.barrier()
    with run.alone():
        run.pieces.claim(run.plan())
        if not run.state.whole:
            with one_thread_each(), quiet():
                run.cut_pieces()
                ranks.barrier()
                ranks.on_first(lambda: run.join(str(source)))
        ranks.on_first(run.publish)
    if ranks.first:
        shutil.rmtree(run.work)
    summary = json.loads((run.place / "summary.json").read_bytes())
    return Preparation(**summary, resumed_at=run.resumed, seconds=time.monotonic() - began)


def _own_cores() -> int:
    """Cores for this process where torchrun started several on the machine."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Run:
    """One preparation: where it writes, and how far it is."""

    def __init__(
        self,
        photos: Photographs,
        target: Path,
        format: str | None,
        detectors: list[Detector],
        cut: Cutter,
        piece: int,
        ranks: Ranks,
    ) -> None:
        self.photos = photos
        self.detectors = detectors
        self.cut = cut
        self.piece = piece
        self.ranks = ranks
        self.goal, self.kind = _goal(target, format)
        if not photos.listed and self.goal.is_relative_to(photos.root):
            raise DataError(f"{self.goal}: lies among the photographs, and the next run would take crops for such")
        self.kind.check(sorted({*(photo.identity for photo in photos.photos), *cut.choose.identities}))
        self.work = self.goal.parent / f".{self.goal.name}.preparing"
        self.place = self.goal.parent / f"{self.goal.stem if self.goal.suffix in FORMATS else self.goal.name}.prepared"
        self.outputs = [self.place.name, *self.kind.outputs(self.goal)]
        self.state = _load_state(self.work / "state.json")
        there = [name for name in self.outputs if (self.goal.parent / name).exists()]
        if there and not self.state.whole:
            raise DataError(f"{self.goal.parent / there[0]}: exists already; remove it or choose another name")
        self.pieces = Pieces(self.work, -(-len(photos.photos) // piece), ".parquet", ranks)
        self.resumed = sum(len(self._photos(number)) for number in range(self.pieces.count) if self._done(number))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other run write here; raises DataError where one does."""
        lock = FileLock(self.work / "lock", timeout=0)

        def take() -> None:
            self.work.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                raise DataError(f"{self.goal}: another process is writing it") from error

        self.ranks.on_first(take)
        try:
            yield
        finally:
            lock.release()

    def plan(self) -> dict[str, object]:
        """Another for other photographs and for settings under which they would give other crops."""
        detector = self.detectors[0]
        digest = hashlib.sha256()
        for photo in self.photos.photos:
            path = self.photos.path(photo)
            found = path.stat() if path.exists() else None
            digest.update(repr((*photo, found and (found.st_size, found.st_mtime_ns))).encode(errors="surrogateescape"))
        return {
            "detector": [detector.name, detector.model],
            "choice of faces": self.cut.choose.key,
            "size": self.cut.size,
            "smallest face": self.cut.smallest,
            "format": self.kind.__name__,
            "photographs": digest.hexdigest(),
            "piece": self.piece,
        }

    def _photos(self, number: int) -> list[Photograph]:
        return self.photos.photos[number * self.piece : (number + 1) * self.piece]

    def _done(self, number: int) -> bool:
        return self.state.photos > number * self.piece or self.pieces.file(number).exists()

    def cut_pieces(self) -> None:
        """Look at the photographs of this rank's pieces, and keep what comes of them."""
        left = [
            (number, photo) for number in self.pieces.own() if not self._done(number) for photo in self._photos(number)
        ]
        outcomes: list[Outcome] = []
        with progress_callback(f"{self.goal.name}: looking for faces") as progress:
            for at, ((number, _), outcome) in enumerate(in_order(self._cut, left, self.detectors), 1):
                outcomes.append(outcome)
                if len(outcomes) == len(self._photos(number)):
                    save_outcomes(self.pieces.file(number), outcomes)
                    outcomes = []
                progress(at, len(left))

    def _cut(self, detector: Detector, item: tuple[int, Photograph]) -> Outcome:
        return self.cut(detector, self.photos, item[1])

    def join(self, source: str) -> None:
        """Write the set from the pieces, from `state.photos` on, and its report."""
        log = PrepareLog(self.work / self.place.name, self.state.log)
        writer = self.kind(self.work, self.goal, self.state.sizes)
        names = _CropNames(self.work / self.place.name)
        try:
            for number in track(
                range(self.state.photos // self.piece, self.pieces.count), f"{self.goal.name}: writing"
            ):
                photos, file = self._photos(number), self.pieces.file(number)
                for photo, outcome in zip(photos, load_outcomes(file, len(photos)), strict=True):
                    _write(photo, outcome, names, writer, log)
                self.state.photos += len(photos)
                self.state.sizes, self.state.log = writer.sizes(), log.sizes()
                self._save_state()
                file.unlink()
        finally:
            writer.close()
            log.close()
        self.report(source)

    def report(self, source: str) -> None:
        """Write what follows the last crop; raises DataError when there is none."""
        folder = self.work / self.place.name
        refused = list(refusals_of(folder))
        people = [identity for _, identity in crops_of(folder)]
        reasons = dict(Counter(line.reason for line in refused).most_common())
        if not people:
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            shutil.rmtree(self.work)
            raise DataError(f"{source}: none of {len(self.photos.photos):,} photographs gives a face; {told}")
        if not refused:
            thumbnails = "nothing was refused"
        elif in_repository(self.place.parent):
            thumbnails = f"not drawn: {self.place.parent} belongs to a Git repository, which should hold no faces"
        else:
            draw_sheet(folder / "refused.png", self.photos, refused)
            thumbnails = str(self.place / "refused.png")
        done = Preparation(
            source=source,
            target=str(self.goal),
            format=FORMATS[_suffix(self.goal)][0],
            detector=self.detectors[0].name,
            model=self.detectors[0].model,
            size=self.cut.size,
            smallest=self.cut.smallest,
            photographs=len(self.photos.photos),
            crops=len(people),
            people=len(set(people)),
            refused=reasons,
            ignored=self.photos.ignored,
            report=str(self.place),
            thumbnails=thumbnails,
        )
        summary = {name: value for name, value in asdict(done).items() if name not in ("resumed_at", "seconds")}
        atomic_write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.state.whole = True
        self._save_state()

    def publish(self) -> None:
        """Give everything its name, the set last."""
        for name in self.outputs:
            if (self.work / name).exists():
                os.replace(self.work / name, self.goal.parent / name)

    def _save_state(self) -> None:
        atomic_write(self.work / "state.json", json.dumps(asdict(self.state)))


def _goal(target: Path, format: str | None) -> tuple[Path, type[Writer]]:
    """The set's name, with the suffix of its format, and the writer."""
    suffix = _suffix(target)
    if format is None and suffix not in PREPARE_FORMATS.values():
        raise DataError(f"{target}: {FORMATS[suffix][0]} is not written here; prepare NAME.csv and convert it")
    if format is not None:
        if format not in PREPARE_FORMATS:
            raise DataError(f"format is {format!r}; expected one of {', '.join(PREPARE_FORMATS)}")
        if suffix and suffix != PREPARE_FORMATS[format]:
            raise DataError(f"{target}: has the suffix of another format than {format}; leave it out or the format")
        if not suffix:
            suffix = PREPARE_FORMATS[format]
            target = target.with_name(target.name + suffix)
    return target, FORMATS[suffix][1]


def _suffix(target: Path) -> str:
    return target.suffix.lower() if target.suffix.lower() in FORMATS else ""


def _load_state(path: Path) -> _State:
    try:
        return _State(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return _State()
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove {path.parent} to begin anew") from error


def _write(photo: Photograph, outcome: Outcome, names: _CropNames, writer: Writer, log: PrepareLog) -> None:
    for crop in outcome.crops:
        identity = crop.choice.identity
        name = names.take(identity, photo)
        writer.add(Entry(name, identity, names.label(identity), crop.jpeg))
        log.add(name, photo.name, crop.choice)
    for refusal in outcome.refused:
        log.refuse(photo.name, refusal)


class _CropNames:
    """Names `IDENTITY/FILE.jpg` for crops, no two alike even where case does not count, and labels by appearance."""

    def __init__(self, folder: Path) -> None:
        """Go on after the crops that are logged in `folder`."""
        self._taken: set[str] = set()
        self._labels: dict[str, int] = {}
        for name, identity in crops_of(folder):
            self._taken.add(name.casefold())
            self.label(identity)

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
