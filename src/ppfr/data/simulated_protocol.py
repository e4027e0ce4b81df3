"""A simulated data set on disk: photos of any source under the paths of a real protocol, with its list files.

Which photo lies under which path follows from the source, the protocol and the seed alone. Each photo is used once:
some of a person's are their visible-light photos, the others become images of the second modality, so that nobody is
found by the very photo they were enrolled with. Numbers of people, shares of visible-light photos and of test people
imitate the real lists as far as the source reaches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from ppfr.data.faceset import FaceSet, Skipped
from ppfr.data.images import Images, Source
from ppfr.data.protocols.heterogeneous import (
    PROTOCOLS,
    SIMULATION_FILE,
    Domain,
    Heterogeneous,
    ListedImage,
    Protocol,
    open_heterogeneous,
    read_simulation,
)
from ppfr.data.protocols.list_names import STYLES, NameStyle
from ppfr.data.sources import holds_splits, open_splits
from ppfr.data.synthetic.faces import is_synthetic
from ppfr.data.synthetic.sensors import SENSORS, VERSION, simulate
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_write

FOLDS = 10
JPEG_QUALITY = 95
_CHUNK = 256
"""Images between two reports of progress, and at most in memory."""


@dataclass(frozen=True)
class _Person:
    """Somebody in the source: which of its sets they are in, and the rows of their photos, by domain."""

    part: int
    photos: Mapping[Domain, Sequence[int]]


@dataclass(frozen=True)
class SimulatedProtocol:
    """What a simulated data set will consist of.

    `images` maps a path under the data set to (set, row, domain) of the photo that it shows; `lists` maps names under
    `Protocol/` to contents. `left_out` names unusable photos, and people who have too few.
    """

    protocol: Protocol
    sets: tuple[FaceSet, ...]
    images: dict[str, tuple[int, int, Domain]]
    lists: dict[str, bytes]
    description: dict[str, Any]
    left_out: list[Skipped] = field(default_factory=list)


def plan_layout(
    faces: Source, protocol_name: str, *, lists: Path | None = None, seed: int = 0, strict: bool = False
) -> SimulatedProtocol:
    """Decide which photo of a source lies under which path of a protocol.

    Without `lists` the list files are made: everybody is in every fold. Fold 1 divides people as the source does if it
    names training and test people itself; every other fold draws its test people, and all folds their gallery photos,
    by `seed`. With `lists`, a data set's folder with the real list files in `Protocol/`, those are kept: the source's
    test people stand for the test people of the lowest fold in the order of its gallery, its training people for
    the training people in the order of its list, as many as there are; a person's photos take their first paths,
    gallery before probes before training. Raises DataError for an unknown protocol, for too few people or photos, and
    what `open_splits` raises.
    """
    if protocol_name not in PROTOCOLS:
        raise DataError(f"no protocol {protocol_name!r}; known: {', '.join(PROTOCOLS)}")
    protocol, style = PROTOCOLS[protocol_name], STYLES[protocol_name]
    given = holds_splits(faces)
    sets = open_splits(faces, seed=seed, strict=strict)
    people, left_out = _people(sets, style, protocol, seed)
    counts = [sum(person.part == part for person in people) for part in (0, 1)]
    if min(counts) < 2:
        raise DataError(
            f"{faces}: {counts[0]} people to train and {counts[1]} to test with two photos or more; expected 2 of each"
        )
    if lists is None:
        images, files = _made(people, protocol, style, given, seed)
        origin = f"made, {f'{FOLDS} folds' if protocol.many_folds else 'one fold'}"
    else:
        real = open_heterogeneous(f"{protocol.name}:{lists}")
        images, files = _real(people, real)
        origin = f"real, fold {', '.join(map(str, real.folds))}"
    description = {
        "what": f"Photos laid out as {protocol.title}; the {protocol.probe_domain} images are simulated.",
        "protocol": protocol.name,
        "transform": {"version": VERSION, **SENSORS[protocol.probe_domain].to_dict()},
        "seed": seed,
        "faces": str(faces) if is_synthetic(faces) else str(Path(faces).expanduser().resolve()),
        "people": len({(part, int(sets[part].labels[row])) for part, row, _ in images.values()}),
        "images": len(images),
        "lists": origin,
        "fold_1_divides_as_the_source": given or lists is not None,
        "ppfr": version("ppfr"),
    }
    return SimulatedProtocol(protocol, sets, images, files, description, left_out)


def write_layout(layout: SimulatedProtocol, out: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write a data set into `out` and return the number of images that were not there before.

    `SIMULATED.json` comes first, so that not even a half of it can be taken for real images, and the list files last,
    so that a half of it cannot be opened. Every file is either whole or absent (or empty, after a power failure), and a
    second call goes on where the first was stopped. Raises DataError when `out` holds anything else.
    """
    found = read_simulation(out)
    if found is None and out.is_dir() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty and no simulated data set; choose another folder, else it mixes with real images"
        )
    if found is not None and found != layout.description:
        changed = sorted(
            key for key in found.keys() | layout.description.keys() if found.get(key) != layout.description.get(key)
        )
        raise DataError(f"{out} holds another simulated data set ({', '.join(changed)} differ); choose another folder")
    atomic_write(out / SIMULATION_FILE, json.dumps(layout.description, indent=2) + "\n")
    missing = [path for path in layout.images if not _is_written(out / path)]
    done = len(layout.images) - len(missing)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            photos = _read(layout, chunk)
            list(pool.map(lambda path, photo: _write_image(layout, out, path, photo), chunk, photos))
            done += len(chunk)
            if progress is not None:
                progress(done, len(layout.images))
    for name, content in layout.lists.items():
        atomic_write(out / "Protocol" / name, content, sync=False)
    return len(missing)


# ------------------------------------------------------------------------------------------------- people


def _people(
    sets: Sequence[FaceSet], style: NameStyle, protocol: Protocol, seed: int
) -> tuple[list[_Person], list[Skipped]]:
    """Everybody in the source with their photos divided between the domains, training people first."""
    people: list[_Person] = []
    left_out = [skipped for faces in sets for skipped in faces.skipped]
    for part, faces in enumerate(sets):
        for label, identity in enumerate(faces.identities):
            rows = np.flatnonzero(faces.labels == label)
            if len(rows) < 2:
                left_out.append(Skipped(identity, "one photo: not enough for two modalities"))
                continue
            rows = np.random.default_rng([seed, part, label]).permutation(rows)
            visible = int(np.clip(round(style.visible_share * len(rows)), 1, len(rows) - 1))
            photos = {Domain.VIS: rows[:visible].tolist(), protocol.probe_domain: rows[visible:].tolist()}
            people.append(_Person(part, photos))
    return people, left_out


# ------------------------------------------------------------------------------------------------- made lists


def _made(
    people: Sequence[_Person], protocol: Protocol, style: NameStyle, given: bool, seed: int
) -> tuple[dict[str, tuple[int, int, Domain]], dict[str, bytes]]:
    """Images and list files of a data set that is like the real one but has people and photos of its own number."""
    written = [
        {
            domain: [style.photo(number, index, domain) for index in range(len(rows))]
            for domain, rows in person.photos.items()
        }
        for number, person in enumerate(people)
    ]
    images = {
        _posix(path): (person.part, row, domain)
        for person, paths in zip(people, written, strict=True)
        for domain, rows in person.photos.items()
        for path, row in zip(paths[domain], rows, strict=True)
    }
    files: dict[str, bytes] = {}
    for fold in range(1, 1 + (FOLDS if protocol.many_folds else 1)):
        rng = np.random.default_rng([seed, fold, len(people)])
        if fold == 1 and given:
            tested = [number for number, person in enumerate(people) if person.part == 1]
        else:
            count = int(np.clip(round(style.test_share * len(people)), 2, len(people) - 2))
            tested = sorted(rng.permutation(len(people))[:count].tolist())
        for name, lines in _fold_lists(protocol, style, written, tested, rng).items():
            files[name.format(fold=fold)] = ("\n".join(lines) + "\n").encode()
    return images, files


def _fold_lists(
    protocol: Protocol,
    style: NameStyle,
    written: Sequence[Mapping[Domain, Sequence[str]]],
    tested: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Lines of each list of one fold, by the list's name."""

    def lines(person: int, paths: Sequence[str]) -> list[str]:
        return [f"{path} {style.identity(person)}" if protocol.identity_column else path for path in paths]

    training = [person for person in range(len(written)) if person not in set(tested)]
    by_domain = {
        domain: [line for person in training for line in lines(person, written[person][domain])]
        for domain in (protocol.probe_domain, Domain.VIS)
    }
    gallery: list[str] = []
    for person in tested:
        photos = written[person][Domain.VIS]
        enrolled = len(photos) if style.gallery_photos is None else style.gallery_photos
        gallery += lines(person, [photos[index] for index in sorted(rng.permutation(len(photos))[:enrolled])])
    lists = {
        protocol.gallery[-1]: gallery,
        protocol.probe: [line for person in tested for line in lines(person, written[person][protocol.probe_domain])],
    }
    if len(protocol.train) == 1:
        return lists | {protocol.train[0]: [line for part in by_domain.values() for line in part]}
    visible, other = protocol.train
    return lists | {visible: by_domain[Domain.VIS], other: by_domain[protocol.probe_domain]}


# ------------------------------------------------------------------------------------------------- real lists


def _real(
    people: Sequence[_Person], real: Heterogeneous
) -> tuple[dict[str, tuple[int, int, Domain]], dict[str, bytes]]:
    """Images for as many lines of real list files as there are people and photos, and those files as they are."""
    gallery, probes, train = (
        [entry for fold in real.folds for entry in real.read(part, fold).entries]
        for part in ("gallery", "probe", "train")
    )
    paths: dict[str, dict[Domain, dict[str, None]]] = {}
    for entry in (*gallery, *probes, *train):
        paths.setdefault(entry.identity, {}).setdefault(entry.domain, {})[entry.path] = None
    tested = _identities(real.read("gallery", real.first).entries)
    trained = [name for name in _identities(real.read("train", real.first).entries) if name not in set(tested)]
    images: dict[str, tuple[int, int, Domain]] = {}
    for part, names in ((1, tested), (0, trained)):
        for name, person in zip(names, (person for person in people if person.part == part), strict=False):
            for domain, rows in person.photos.items():
                for path, row in zip(paths[name].get(domain, ()), rows, strict=False):
                    images[path] = (part, row, domain)
    files = {name for fold in real.folds for name in real.list_files(fold)}
    return images, {name.as_posix(): (real.lists / name).read_bytes() for name in sorted(files)}


def _identities(entries: Sequence[ListedImage]) -> list[str]:
    return list(dict.fromkeys(entry.identity for entry in entries))


# ------------------------------------------------------------------------------------------------- writing


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _is_written(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read(layout: SimulatedProtocol, paths: Sequence[str]) -> list[Images]:
    """The photos behind paths, read set by set."""
    photos: dict[str, Images] = {}
    for part, faces in enumerate(layout.sets):
        mine = [path for path in paths if layout.images[path][0] == part]
        if mine:
            photos.update(zip(mine, faces.images([layout.images[path][1] for path in mine]), strict=True))
    return [photos[path] for path in paths]


def _write_image(layout: SimulatedProtocol, out: Path, path: str, photo: Images) -> None:
    part, row, domain = layout.images[path]
    if domain is Domain.VIS:
        pixels = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
    else:
        # the noise belongs to the photo, whatever was written before it
        rng = np.random.default_rng([layout.description["seed"], part, row, VERSION])
        pixels = simulate(photo, domain, rng)
    suffix = PurePosixPath(path).suffix.lower()
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    atomic_write(out / path, cv2.imencode(suffix, pixels, quality)[1].tobytes(), sync=False)
