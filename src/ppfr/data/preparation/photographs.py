"""Photographs as they come: a folder of any depth or a list, files of any name and in any state."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ppfr.data.formats.listings import read_csv
from ppfr.data.images import IMAGE_SUFFIXES, Images, Source, read_image
from ppfr.util.errors import DataError

PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".jfif", ".jpe", ".jp2", ".gif", ".avif"}


class Photograph(NamedTuple):
    """A photograph: its name below the source, and whom it shows."""

    name: str
    identity: str


@dataclass
class Photographs:
    """Photographs in a fixed order, all below `root` or those `listed`; `ignored` counts other files by suffix."""

    root: Path
    photos: list[Photograph]
    ignored: dict[str, int]
    listed: bool

    def path(self, photo: Photograph) -> Path:
        return self.root / photo.name

    def read(self, photo: Photograph) -> Images:
        """RGB uint8 (H, W, 3), turned upright; raises DataError naming why it cannot be used, without the name."""
        path = self.path(photo)
        try:
            return read_image(path, None)
        except DataError as error:
            raise DataError(str(error).removeprefix(f"{path}: ")) from error


def open_photographs(source: Source) -> Photographs:
    """List the photographs of a folder, or of a CSV with the columns path (relative to the CSV) and identity.

    In a folder, a photograph shows whom its own folder names: `GROUP/IDENTITY/PHOTO.jpg` has the identity
    `GROUP/IDENTITY`, and one that lies in `source` itself that folder's name. Hidden files and folders are left out,
    and links to folders not followed. Raises DataError when there is no such source, or no photograph in it.
    """
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        found = _in_folder(path)
    elif path.suffix.lower() == ".csv":
        found = _in_list(path)
    else:
        what = "expected a folder or a .csv list" if path.exists() else "no such folder or list"
        raise DataError(f"{path}: {what} of photographs")
    if not found.photos:
        others = f"; {sum(found.ignored.values())} other files ({_suffixes(found.ignored)})" if found.ignored else ""
        raise DataError(f"{path}: no photographs{others}; expected {', '.join(sorted(PHOTO_SUFFIXES))}")
    return found


def _in_folder(root: Path) -> Photographs:
    photos: list[Photograph] = []
    ignored: Counter[str] = Counter()
    for name in _files(root):
        inside = Path(name)
        if inside.suffix.lower() in PHOTO_SUFFIXES:
            folder = inside.parent.as_posix()
            photos.append(Photograph(name, root.name if folder == "." else folder))
        else:
            ignored[inside.suffix.lower() or "without suffix"] += 1
    return Photographs(root, photos, dict(ignored), listed=False)


def _files(root: Path) -> Iterator[str]:
    """Names of all files below a folder, sorted so that those of a folder follow each other."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _in_list(path: Path) -> Photographs:
    photos: dict[str, Photograph] = {}
    for line, row in read_csv(path, ("path", "identity")):
        if not row["path"] or not row["identity"]:
            raise DataError(f"{path}, line {line}: no {'path' if not row['path'] else 'identity'}")
        if row["path"] in photos:
            raise DataError(f"{path}, line {line}: {row['path']!r} is listed a second time; expected each once")
        photos[row["path"]] = Photograph(row["path"], row["identity"])
    return Photographs(path.parent, list(photos.values()), {}, listed=True)


def _suffixes(ignored: dict[str, int]) -> str:
    return ", ".join(sorted(ignored))
