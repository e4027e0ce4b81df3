"""Heterogeneous protocols from their own list files: LAMP-HQ, CASIA NIR-VIS 2.0 and Tufts.

A data set is a folder of images with its list files in `Protocol/` (or `protocols/`). Each fold has training lists,
a gallery of visible-light photos and probes of another modality. The lists are real-world files: CASIA's paths have
backslashes; LAMP-HQ's identity stands in the second column, elsewhere the image's folder names it; the modality is
part of the path. A line that cannot be what its list says is left out and named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from ppfr.data.faceset import Skipped
from ppfr.data.formats.listings import Listing
from ppfr.data.images import IMAGE_SUFFIXES
from ppfr.util.errors import DataError

SIMULATION_FILE = "SIMULATED.json"
"""Marks a data set whose second modality was computed; `ppfr simulate-hfr` writes it, every loader reads it."""

LIST_FOLDERS = ("protocol", "protocols")
_ONLY_FOLD = 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Part = Literal["train", "gallery", "probe"]


class Domain(StrEnum):
    """What kind of light made an image."""

    VIS = "visible"
    NIR = "near-infrared"
    THERMAL = "thermal"


class ListedImage(NamedTuple):
    """One usable line of a list: the image's path under the data set's folder, whose it is, and its domain."""

    path: str
    identity: str
    domain: Domain


class ListFile(NamedTuple):
    """What a list file names, and the lines that it names in vain."""

    entries: list[ListedImage]
    refused: list[Skipped]


@dataclass(frozen=True)
class Protocol:
    """Where a data set keeps its lists and what their lines mean.

    `train`, `gallery` and `probe` are file names under the list folder; of several in `gallery` the first that exists
    counts. `{fold}` stands for the fold's number; a protocol without it has one fold. `domains` maps a word of a path
    (between slashes, dots and underscores) to what it says. `identity_column` says that identities stand in a second
    column and that folders do not name them.
    """

    name: str
    title: str
    train: tuple[str, ...]
    gallery: tuple[str, ...]
    probe: str
    domains: Mapping[str, Domain]
    identity_column: bool = False

    @property
    def probe_domain(self) -> Domain:
        """The modality that is not visible light."""
        return next(domain for domain in self.domains.values() if domain is not Domain.VIS)

    @property
    def many_folds(self) -> bool:
        """Whether there is more than one division into training and test people."""
        return "{fold}" in self.probe


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # Yu et al., LAMP-HQ (IJCV 2021): 10 folds, 300 people to train, 273 to test
        Protocol(
            name="lamp-hq",
            title="LAMP-HQ",
            train=("train/train_fold{fold}.txt",),
            gallery=("test/gallery_vis{fold}.txt",),
            probe="test/probe_nir{fold}.txt",
            domains={"VIS": Domain.VIS, "NIR": Domain.NIR},
            identity_column=True,
        ),
        # Li et al., The CASIA NIR-VIS 2.0 Face Database (CVPRW 2013), view 2: 10 folds, 357 and 358 people
        Protocol(
            name="casia-nir-vis",
            title="CASIA NIR-VIS 2.0",
            train=("vis_train_{fold}.txt", "nir_train_{fold}.txt"),
            gallery=("vis_gallery_{fold}.txt",),
            probe="nir_probe_{fold}.txt",
            domains={"VIS": Domain.VIS, "NIR": Domain.NIR},
        ),
        # Panetta et al., Tufts Face Database (TPAMI 2020), thermal; the lists are PrivacyHFR's: 90 people to train, 22
        # to test. Its own evaluation reads gallery_small.txt, gallery_all.txt has all photos of each person.
        Protocol(
            name="tufts",
            title="Tufts",
            train=("train.txt",),
            gallery=("gallery_small.txt", "gallery_all.txt"),
            probe="probe.txt",
            domains={"RGB": Domain.VIS, "IR": Domain.THERMAL},
        ),
    )
}


@dataclass(frozen=True)
class Heterogeneous:
    """A data set in its folder: the folds whose lists are complete, and what is known to be amiss.

    `chosen` is the fold that the source names, if it names one. `incomplete` names folds of which a list is missing.
    `simulation` is the content of `SIMULATED.json`, None for real images.
    """

    protocol: Protocol
    root: Path
    lists: Path
    folds: tuple[int, ...]
    chosen: int | None
    incomplete: list[Skipped]
    simulation: dict[str, Any] | None

    @property
    def title(self) -> str:
        """The data set's name, which says so when the second modality is simulated."""
        return f"simulated {self.protocol.title}" if self.simulation else self.protocol.title

    @property
    def first(self) -> int:
        """The fold that is meant where one is needed and none was named: the lowest."""
        return self.folds[0] if self.chosen is None else self.chosen

    def set_name(self, fold: int, part: str) -> str:
        """What a set of this fold is called in run records and reports."""
        return f"{self.title} fold {fold} ({part})"

    def trained_fold(self, set_name: str) -> int | None:
        """The fold whose training list a run record's `set_name` is; None for other data."""
        found = re.fullmatch(re.escape(self.title) + r" fold (\d+) \(train\)", set_name)
        return int(found[1]) if found else None

    def read(self, part: Part, fold: int) -> ListFile:
        """One part of a fold's lists; raises DataError when there is no such fold or a list cannot be read."""
        if fold not in self.folds:
            known = ", ".join(map(str, self.folds))
            amiss = "".join(f"; {path}: {reason}" for path, reason in self.incomplete)
            raise DataError(f"{self.root}: there is no complete fold {fold}; found {known}{amiss}")
        domains = {
            "train": {Domain.VIS, self.protocol.probe_domain},
            "gallery": {Domain.VIS},
            "probe": {self.protocol.probe_domain},
        }
        return _merged([read_list(path, self.protocol, domains[part]) for path in self._paths(part, fold)])

    def list_files(self, fold: int) -> list[Path]:
        """The list files of a fold, relative to the list folder."""
        parts: tuple[Part, ...] = ("train", "gallery", "probe")
        return [path.relative_to(self.lists) for part in parts for path in self._paths(part, fold)]

    def _paths(self, part: Part, fold: int) -> list[Path]:
        if part == "train":
            return [self.lists / name.format(fold=fold) for name in self.protocol.train]
        names = self.protocol.gallery if part == "gallery" else (self.protocol.probe,)
        paths = [self.lists / name.format(fold=fold) for name in names]
        return [next((path for path in paths if path.is_file()), paths[-1])]


def is_heterogeneous(source: object) -> bool:
    """Whether a source is `PROTOCOL:DIR` rather than a path."""
    return isinstance(source, str) and source.partition(":")[0] in PROTOCOLS


def open_heterogeneous(source: str) -> Heterogeneous:
    """Find the lists of a source `PROTOCOL:DIR[,fold=N]`, PROTOCOL one of `PROTOCOLS`, without opening any image.

    Raises DataError for an unknown protocol, a folder without list files, and a fold that is not there.
    """
    name, _, rest = source.partition(":")
    if name not in PROTOCOLS:
        raise DataError(f"{source}: no protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    folder, _, wanted = rest.partition(",fold=")
    if not folder:
        raise DataError(f"{source!r} names no folder; expected {name}:DIR or {name}:DIR,fold=N")
    if wanted and not (wanted.isascii() and wanted.isdigit()):
        raise DataError(f"{source}: fold={wanted!r}; expected a whole number, as in {name}:{folder},fold=1")
    root = Path(folder).expanduser()
    lists = find_lists(root, protocol)
    folds, incomplete = _find_folds(lists, protocol)
    if not folds:
        amiss = f" ({incomplete[0].path}: {incomplete[0].reason})" if incomplete else ""
        raise DataError(f"{lists}: no complete fold of {protocol.title}{amiss}; expected {_expected(protocol)}")
    found = Heterogeneous(
        protocol, root, lists, folds, int(wanted) if wanted else None, incomplete, read_simulation(root)
    )
    if found.chosen is not None and found.chosen not in folds:
        found.read("probe", found.chosen)
    return found


def read_simulation(root: Path) -> dict[str, Any] | None:
    """What `SIMULATED.json` says of a data set's folder, None without the file; raises DataError for a broken one."""
    path = root / SIMULATION_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); simulate the data set again") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds no description; simulate the data set again")
    return content


def find_lists(root: Path, protocol: Protocol) -> Path:
    """The folder with a data set's list files; raises DataError when `root` has none."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {protocol.title}'s images and its list files in Protocol/")
    found = sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name.lower() in LIST_FOLDERS)
    if not found:
        raise DataError(f"{root}: no folder Protocol; copy or link the list files there: {_expected(protocol)}")
    return found[0]


def _expected(protocol: Protocol) -> str:
    names = [*protocol.train, " or ".join(protocol.gallery), protocol.probe]
    return ", ".join(f"Protocol/{name}" for name in names).replace("{fold}", "1")


def _find_folds(lists: Path, protocol: Protocol) -> tuple[tuple[int, ...], list[Skipped]]:
    """Numbers of the complete folds, and of the others which file they lack."""
    numbers = {_ONLY_FOLD} if not protocol.many_folds else set(_numbered(lists, protocol))
    complete: list[int] = []
    incomplete: list[Skipped] = []
    for number in sorted(numbers):
        wanted = [(name,) for name in protocol.train] + [protocol.gallery, (protocol.probe,)]
        named = [[name.format(fold=number) for name in names] for names in wanted]
        missing = [" or ".join(names) for names in named if not any((lists / name).is_file() for name in names)]
        if missing:
            incomplete.append(Skipped(f"{lists}, fold {number}", f"no {', '.join(missing)}"))
        else:
            complete.append(number)
    return tuple(complete), incomplete


def _numbered(lists: Path, protocol: Protocol) -> Iterator[int]:
    for template in (*protocol.train, *protocol.gallery, protocol.probe):
        before, _, after = PurePosixPath(template).name.partition("{fold}")
        pattern = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}")
        folder = lists / PurePosixPath(template).parent
        for file in folder.iterdir() if folder.is_dir() else ():
            # written without leading zeros, else the name could not be made from the number
            if (found := pattern.fullmatch(file.name)) and str(int(found[1])) == found[1]:
                yield int(found[1])


# ------------------------------------------------------------------------------------------------- list files


def read_list(path: Path, protocol: Protocol, domains: set[Domain]) -> ListFile:
    """Read a list file as `parse_list` does; raises DataError when it cannot be read as UTF-8 text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list in UTF-8 ({error})") from error
    return parse_list(text, str(path), protocol, domains)


def parse_list(text: str, name: str, protocol: Protocol, domains: set[Domain]) -> ListFile:
    """Parse the text of a list file called `name`, whose images are of `domains`.

    A line is a path, with an identity behind it where the protocol has that column (elsewhere it may be there). Blank
    lines do not count. Refused and named with their number: lines without an image's path, without an identity, with
    a path that leads out of the data set, of another or an unknown domain, and paths listed before.
    """
    entries: list[ListedImage] = []
    refused: list[Skipped] = []
    seen: dict[str, int] = {}
    # not str.splitlines, which also breaks at characters that belong to a name
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        try:
            entry = parse_line(line, protocol)
            if entry.domain not in domains:
                raise DataError(f"{entry.path} is {entry.domain}; expected {' or '.join(sorted(domains))} here")
            if entry.path in seen:
                raise DataError(f"{entry.path} was listed before, in line {seen[entry.path]}")
        except DataError as error:
            refused.append(Skipped(f"{name}, line {number}", str(error)))
            continue
        seen[entry.path] = number
        entries.append(entry)
    return ListFile(entries, refused)


def parse_line(line: str, protocol: Protocol) -> ListedImage:
    """Parse one line of a list; raises DataError that says what is wrong with it."""
    columns = line.strip().rsplit(maxsplit=1)
    column = columns[1] if len(columns) == 2 and not _is_image_path(columns[1]) else None
    path = _clean_path(line.strip() if column is None else columns[0])
    if column is None and protocol.identity_column:
        raise DataError(f"{path} has no identity behind it")
    identity = column or path.parent.name
    if not identity:
        raise DataError(f"{path} lies in no folder that would name its identity")
    words = re.split(r"[/._]", str(path).upper())
    found = {protocol.domains[word] for word in words if word in protocol.domains}
    if len(found) != 1:
        raise DataError(f"{path}: expected one of {', '.join(protocol.domains)} in the path to tell the domain")
    return ListedImage(str(path), identity, found.pop())


def _is_image_path(text: str) -> bool:
    return "\\" in text or "/" in text or Path(text).suffix.lower() in IMAGE_SUFFIXES


def _clean_path(text: str) -> PurePosixPath:
    """A list's path, of either style, as one under the data set's folder."""
    if _CONTROL.search(text):
        raise DataError(f"{text!r} holds control characters")
    path = PurePosixPath(text.replace("\\", "/"))
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{text!r} is not the path of an image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{text!r} leads out of the data set; expected a path below its folder")
    return path


def _merged(files: Sequence[ListFile]) -> ListFile:
    """Several files as one; an image that more than one of them lists counts once."""
    entries: dict[str, ListedImage] = {}
    refused = [line for file in files for line in file.refused]
    for entry in (entry for file in files for entry in file.entries):
        if entry.path in entries:
            refused.append(Skipped(entry.path, "is in more than one training list"))
        entries.setdefault(entry.path, entry)
    return ListFile(list(entries.values()), refused)


def list_entries(root: Path, files: Sequence[ListFile]) -> Listing:
    """What a protocol's list files name, as files below `root`; an image that several name counts once."""
    entries = {entry.path: entry for file in files for entry in file.entries}
    refused = {line: None for file in files for line in file.refused}
    return Listing([root / path for path in entries], [entry.identity for entry in entries.values()], list(refused))
