"""The benchmarks that papers report, and where they lie in a folder of data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from ppfr.data.faceset import Skipped
from ppfr.data.formats.carray import is_carray
from ppfr.data.protocols.heterogeneous import LIST_FOLDERS
from ppfr.data.protocols.ijb import is_ijb
from ppfr.data.protocols.rfw import is_rfw
from ppfr.util.errors import DataError


class SuiteKind(StrEnum):
    """How a benchmark is measured."""

    PAIRS = "pairs"
    RFW = "rfw"
    IJB = "ijb"
    PROTOCOL = "protocol"


@dataclass(frozen=True)
class Suite:
    """A benchmark: its name on the command line, its title, and how its file or folder may be called.

    `names` are compared without regard to case, with `_` for every other separator. `column` is its heading in tables
    and `pairs` how many pairs the published set has, by which a part of it is recognised.
    """

    name: str
    title: str
    kind: SuiteKind
    names: tuple[str, ...]
    column: str = ""
    pairs: int | None = None


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        # numbers of pairs: Huang et al. 2007; Sengupta et al. 2016; Moschoglou et al. 2017; Zheng et al. 2017, 2018
        Suite("lfw", "LFW", SuiteKind.PAIRS, ("lfw",), "LFW", 6000),
        Suite("cfp_fp", "CFP-FP", SuiteKind.PAIRS, ("cfp_fp",), "CFP-FP", 7000),
        Suite("agedb_30", "AgeDB-30", SuiteKind.PAIRS, ("agedb_30", "agedb"), "AgeDB", 6000),
        Suite("cplfw", "CPLFW", SuiteKind.PAIRS, ("cplfw",), "CPLFW", 6000),
        Suite("calfw", "CALFW", SuiteKind.PAIRS, ("calfw",), "CALFW", 6000),
        Suite("rfw", "RFW", SuiteKind.RFW, ("rfw",), pairs=24_000),
        # Whitelam et al. 2017; Maze et al. 2018
        Suite("ijbb", "IJB-B", SuiteKind.IJB, ("ijbb",), "IJB-B", 8_010_270),
        Suite("ijbc", "IJB-C", SuiteKind.IJB, ("ijbc",), "IJB-C", 15_658_489),
        Suite("lamp-hq", "LAMP-HQ", SuiteKind.PROTOCOL, ("lamp_hq", "lamphq")),
        Suite(
            "casia-nir-vis",
            "CASIA NIR-VIS 2.0",
            SuiteKind.PROTOCOL,
            ("casia_nir_vis", "casia_nir_vis_2_0", "nir_visv2", "nir_vis_2_0"),
        ),
        Suite("tufts", "Tufts", SuiteKind.PROTOCOL, ("tufts", "tufts_face")),
    )
}


class FoundSuites(NamedTuple):
    """Where each benchmark lies, and those that were asked for and are not there, with where they were looked for."""

    paths: dict[str, Path]
    missing: list[Skipped]


def suite_names(text: str | None) -> list[str]:
    """The benchmarks of a comma-separated list, all without one; raises DataError for a name that is none."""
    if text is None:
        return list(SUITES)
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        wrong = ", ".join(unknown) or "nothing"
        raise DataError(f"--suite {text!r}: {wrong} is no benchmark; expected some of {', '.join(SUITES)}")
    return names


def find_suites(root: Path, names: Sequence[str]) -> FoundSuites:
    """Look for benchmarks in `root` and in the folders in it.

    Raises DataError when `root` is no folder, when a benchmark lies in two places, and when none is found.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with the benchmarks' files and folders")
    places = [root, *_entries(root)]
    places += [entry for place in places[1:] if place.is_dir() for entry in _entries(place)]
    paths: dict[str, Path] = {}
    missing: list[Skipped] = []
    for name in names:
        suite = SUITES[name]
        fits = _FITS[suite.kind]
        found = [place for place in places if fits(suite, place)]
        if not found:
            missing.append(Skipped(name, f"not in {root}; expected {_expected(suite)}"))
            continue
        # files before folders: a .bin holds the encoded images, an array of bcolz was made from it
        found.sort(key=lambda place: (place.is_dir(), len(place.parts)))
        nearest = [
            place for place in found if (place.is_dir(), len(place.parts)) == (found[0].is_dir(), len(found[0].parts))
        ]
        if len(nearest) > 1:
            raise DataError(f"{suite.title} lies in {nearest[0]} and in {nearest[1]}; expected one of them in {root}")
        paths[name] = found[0]
    if not paths:
        reasons = "; ".join(f"{name} {reason}" for name, reason in missing)
        raise DataError(f"no benchmark found: {reasons}")
    return FoundSuites(paths, missing)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _plain(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _is_pairs(suite: Suite, place: Path) -> bool:
    if place.suffix.lower() == ".bin":
        return _plain(place.stem) in suite.names and place.is_file()
    return _plain(place.name) in suite.names and is_carray(place)


def _is_rfw(suite: Suite, place: Path) -> bool:
    return is_rfw(place)


def _is_ijb(suite: Suite, place: Path) -> bool:
    return is_ijb(place, suite.names[0])


def _is_protocol(suite: Suite, place: Path) -> bool:
    return _plain(place.name) in suite.names and any(
        entry.is_dir() and entry.name.lower() in LIST_FOLDERS for entry in (_entries(place) if place.is_dir() else ())
    )


_FITS: dict[SuiteKind, Callable[[Suite, Path], bool]] = {
    SuiteKind.PAIRS: _is_pairs,
    SuiteKind.RFW: _is_rfw,
    SuiteKind.IJB: _is_ijb,
    SuiteKind.PROTOCOL: _is_protocol,
}


def _expected(suite: Suite) -> str:
    name = suite.names[0]
    return {
        SuiteKind.PAIRS: f"{name}.bin, or a folder {name} by bcolz with {name}_list.npy",
        SuiteKind.RFW: "a folder with txts/African/African_pairs.txt or another group's",
        SuiteKind.IJB: f"a folder with meta/{name}_face_tid_mid.txt",
        SuiteKind.PROTOCOL: f"a folder {' or '.join(suite.names)} with Protocol/ in it",
    }[suite.kind]
