"""Labelled sets of aligned faces: a folder per identity, a CSV of `path,identity`, or synthetic ones.

Every file is decoded once when a set is opened, so that a broken image is known before training starts and
not in the middle of it; the decoded images stay in memory when they fit into `CACHE_BYTES`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppfr.data.faceset import FaceSet, Indices, Skipped
from ppfr.data.heterogeneous import ListFile, is_heterogeneous, open_heterogeneous
from ppfr.data.images import FACE_SIZE, IMAGE_SUFFIXES, Images, Source, read_images
from ppfr.data.synthetic import is_synthetic, open_synthetic
from ppfr.errors import DataError

CACHE_BYTES = 1 << 30
"""Decoded images of one set are kept in memory up to this size (1 GiB, 28,500 faces of 112 x 112)."""

TEST_SHARE = 0.2


class _Files:
    """Reads image files of a set, from memory when `cache` holds them."""

    def __init__(self, paths: Sequence[Path], size: int, cache: Images | None) -> None:
        self.paths = paths
        self.size = size
        self.cache = cache

    def __call__(self, indices: Indices) -> Images:
        if self.cache is not None:
            return self.cache[indices]
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, image in enumerate(read_images([self.paths[i] for i in indices], self.size)):
            if isinstance(image, DataError):
                raise image
            images[row] = image
        return images


class Listing(NamedTuple):
    """What a source names before any image is decoded."""

    paths: list[Path]
    people: list[str]
    skipped: list[Skipped]


def open_faces(
    source: Source, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Open one set of aligned faces.

    `source` is a folder with one folder per identity, a CSV with the columns `path` and `identity` (paths
    relative to the CSV), `"synthetic[:people=200,images=20,seed=0]"`, or the training list of a heterogeneous
    protocol, `"lamp-hq:DIR[,fold=N]"` (see `ppfr.data.heterogeneous`). Identities are sorted as strings and
    numbered from 0; images keep the CSV's order, or the sorted order of the folders. Images that are missing,
    broken or not square are left out and listed in `.skipped`, as are identity folders without images; files
    with other suffixes are ignored. Raises DataError when the source cannot be read, when no image is left,
    and with `strict` for anything skipped.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)[0]
    if is_heterogeneous(source):
        return _open_protocol(str(source), ("train",), size=size, strict=strict, cache_bytes=cache_bytes)[0]
    path = Path(source).expanduser()
    return load_listing(_describe(path), list_source(path), size=size, strict=strict, cache_bytes=cache_bytes)


def list_source(path: Path) -> Listing:
    """The image paths and identities that a folder or CSV names; raises DataError when it is neither."""
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such data set; expected a folder per identity or a .csv file")
    if path.suffix.lower() == ".csv":
        return _list_csv(path)
    hint = "; a .bin pair file is for evaluation only" if path.suffix.lower() == ".bin" else ""
    raise DataError(f"{path}: not a data set; expected a folder per identity or a .csv file{hint}")


def _describe(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}" if path.suffix else path.name


def _list_folder(folder: Path) -> Listing:
    if splits := _given_splits(folder):
        names = " and ".join(part.name for part in splits)
        raise DataError(f"{folder}: holds two sets, {names}; expected one, as {splits[1]}")
    paths: list[Path] = []
    people: list[str] = []
    skipped: list[Skipped] = []
    for person in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        found = sorted(file for file in person.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            skipped.append(Skipped(str(person), "identity without images"))
        paths += found
        people += [person.name] * len(found)
    if not paths:
        raise DataError(f"{folder}: holds no images; expected {folder}/IDENTITY/IMAGE.jpg (or .png, .webp, ...)")
    return Listing(paths, people, skipped)


def _list_csv(path: Path) -> Listing:
    paths: list[Path] = []
    people: list[str] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for line, row in read_csv(path, ("path", "identity")):
        name, person = row["path"], row["identity"]
        if not name or not person:
            skipped.append(Skipped(f"{path}, line {line}", f"no {'path' if not name else 'identity'}"))
        elif name in seen:
            skipped.append(Skipped(str(path.parent / name), f"listed again in line {line}"))
        else:
            seen.add(name)
            paths.append(path.parent / name)
            people.append(person)
    if not paths:
        raise DataError(f"{path}: lists no images; expected lines of path,identity below the header")
    return Listing(paths, people, skipped)


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and the named columns of every row, stripped; raises DataError when a column is missing."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            found = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = found
            if missing := [column for column in columns if column not in found]:
                raise DataError(
                    f"{path}: column {', '.join(missing)} is missing; "
                    f"found {', '.join(found) or 'an empty file'}, "
                    f"expected {', '.join(columns)} in the first line"
                )
            rows: list[tuple[int, dict[str, str]]] = []
            for row in reader:
                rows.append((reader.line_num, {column: (row[column] or "").strip() for column in columns}))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error


def load_listing(
    name: str, listing: Listing, *, size: int = FACE_SIZE, strict: bool = False, cache_bytes: int = CACHE_BYTES
) -> FaceSet:
    """Decode every listed image once, keep the good ones (in memory when they fit), account for the rest.

    Raises DataError when no image is left, and with `strict` for anything skipped.
    """
    keep = len(listing.paths) * size * size * 3 <= cache_bytes
    cache = np.empty((len(listing.paths), size, size, 3), np.uint8) if keep else None
    good: list[int] = []
    skipped = list(listing.skipped)
    block = 4096  # bounds what is decoded but not yet stored
    for start in range(0, len(listing.paths), block):
        for row, image in enumerate(read_images(listing.paths[start : start + block], size), start):
            if isinstance(image, DataError):
                skipped.append(_skip(listing.paths[row], image))
                continue
            if cache is not None:
                cache[len(good)] = image
            good.append(row)
    lost = sorted(set(listing.people) - {listing.people[row] for row in good})
    skipped += [Skipped(person, "identity without a usable image") for person in lost]
    if not good:
        raise DataError(f"{name}: none of {len(listing.paths)} images can be used; {_first_reasons(skipped)}")
    if strict and skipped:
        raise DataError(f"{name}: {len(skipped)} refused under strict; {_first_reasons(skipped)}")
    paths = [listing.paths[row] for row in good]
    return FaceSet(
        name,
        [listing.people[row] for row in good],
        _Files(paths, size, None if cache is None else cache[: len(good)]),
        names=[str(path) for path in paths],
        size=size,
        skipped=skipped,
    )


def _skip(path: Path, error: DataError) -> Skipped:
    return Skipped(str(path), str(error).removeprefix(f"{path}: "))


def _first_reasons(skipped: Sequence[Skipped], most: int = 3) -> str:
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    return named + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")


def open_splits(
    source: Source,
    *,
    size: int = FACE_SIZE,
    strict: bool = False,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[FaceSet, FaceSet]:
    """Open a training and a test set that share no person.

    `source` is a folder with `train.csv` and `test.csv`, or with `train/` and `test/` (a folder per identity
    in each); or anything `open_faces` takes, which is then split by people: a fifth of them, drawn with
    `seed`, is the test set. `"synthetic:..."` gives `people` people for training and a quarter as many others
    (at least 20) for testing. A heterogeneous protocol, `"lamp-hq:DIR[,fold=N]"`, gives the training list of a
    fold, its lowest unless named, and gallery and probes together. Raises DataError as `open_faces` does, when an
    identity is in both sets, and for fewer than 4 people to split.
    """
    if is_synthetic(source):
        return open_synthetic(str(source), size=size)
    if is_heterogeneous(source):
        train, test = _open_protocol(str(source), ("train", "test"), size=size, strict=strict, cache_bytes=cache_bytes)
    else:
        path = Path(source).expanduser()
        parts = _given_splits(path)
        if parts is None:
            return split_people(open_faces(path, size=size, strict=strict, cache_bytes=cache_bytes), seed=seed)
        train, test = (open_faces(part, size=size, strict=strict, cache_bytes=cache_bytes) for part in parts)
    if both := sorted(set(train.identities) & set(test.identities)):
        raise DataError(
            f"{source}: {len(both)} identities are in both train and test (first: {both[0]}); "
            "expected disjoint people, else the test measures memory. Rename or move them"
        )
    return train, test


def holds_splits(source: Source) -> bool:
    """Whether a source names its training and its test set itself."""
    return is_synthetic(source) or is_heterogeneous(source) or _given_splits(Path(source).expanduser()) is not None


def _open_protocol(source: str, parts: Sequence[str], *, size: int, strict: bool, cache_bytes: int) -> list[FaceSet]:
    """The training images of a protocol's fold, and the gallery and probes of its test."""
    found = open_heterogeneous(source)
    lists = {
        "train": lambda: [found.read("train", found.first)],
        "test": lambda: [found.read("gallery", found.first), found.read("probe", found.first)],
    }
    return [
        load_listing(
            found.set_name(found.first, part),
            list_entries(found.root, lists[part]()),
            size=size,
            strict=strict,
            cache_bytes=cache_bytes,
        )
        for part in parts
    ]


def list_entries(root: Path, files: Sequence[ListFile]) -> Listing:
    """What a protocol's list files name, as files below `root`; an image that several name counts once."""
    entries = {entry.path: entry for file in files for entry in file.entries}
    refused = {line: None for file in files for line in file.refused}
    return Listing([root / path for path in entries], [entry.identity for entry in entries.values()], list(refused))


def _given_splits(path: Path) -> tuple[Path, Path] | None:
    for suffix in (".csv", ""):
        parts = path / f"train{suffix}", path / f"test{suffix}"
        if all(part.exists() for part in parts):
            return parts
    return None


def split_people(faces: FaceSet, *, share: float = TEST_SHARE, seed: int = 0) -> tuple[FaceSet, FaceSet]:
    """Split a set by people into (train, test).

    `share` of the people, at least 2, drawn with `seed`, are for testing; the draw depends on the sorted
    identities and the seed alone. Raises DataError for fewer than 4 people.
    """
    people = len(faces.identities)
    if people < 4:
        raise DataError(f"{faces.name}: {people} people; splitting into train and test needs at least 4")
    chosen = np.random.default_rng(seed).permutation(people)[: max(2, round(share * people))]
    is_test = np.isin(faces.labels, chosen)
    train = faces.subset(np.flatnonzero(~is_test), f"{faces.name} (train)")
    test = faces.subset(np.flatnonzero(is_test), f"{faces.name} (test)")
    train.skipped = list(faces.skipped)
    return train, test
