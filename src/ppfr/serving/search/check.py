"""Whether a gallery is sound: every template opens, and an index holds what the database holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppfr.serving.gallery.gallery import Gallery
from ppfr.serving.search.index import Index, SearchUnavailable
from ppfr.serving.search.indexes import IN_MEMORY, open_index
from ppfr.serving.search.synchronised import SynchronisedIndex
from ppfr.util.errors import GalleryError
from ppfr.util.keyring import Keyring

# cosine of a template with itself after both were rounded to 16 bits
_SAME = 0.999


@dataclass(frozen=True)
class GalleryCheck:
    """The result of `check_gallery`; `problems` is empty for a sound gallery."""

    subjects: int
    faces: int
    keys: dict[str, int]
    templates: str
    template_keys: dict[str, int]
    problems: list[str]

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sound": self.sound,
            "subjects": self.subjects,
            "faces": self.faces,
            "faces by key": self.keys,
            "templates": self.templates,
            "faces by template key": self.template_keys,
            "problems": self.problems,
        }


def check_gallery(
    gallery: Gallery, keyring: Keyring, index: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> GalleryCheck:
    """Open every template, and compare an index with the database, face by face.

    An index in memory is filled from the database as a server fills its own; one outside is compared as it is. Run it
    while no server changes the gallery: changes in between are reported as differences. Raises GalleryError when the
    index cannot be opened.
    """
    problems = gallery.damage()
    keys = gallery.keys.encryption_keys()
    unknown = {key: count for key, count in keys.items() if key not in keyring.ids}
    problems += [f"{count} templates are under key {key!r}, which is not in the ring" for key, count in unknown.items()]
    enrolled = {face.id for face in gallery.faces.find()}
    if not unknown:
        searched = open_index(index, gallery.size, keyring, gallery.contract, gallery.template_key)
        try:
            if index in IN_MEMORY:
                SynchronisedIndex(gallery, searched).build()
            problems += _differences(gallery, searched, enrolled, progress)
        except SearchUnavailable:
            raise
        except GalleryError as error:
            # a template that does not open
            problems.append(str(error))
        finally:
            searched.close()
    subjects, kind = len(gallery.subjects.names()), str(gallery.templates)
    return GalleryCheck(subjects, len(enrolled), keys, kind, gallery.keys.template_keys(), problems)


def _differences(
    gallery: Gallery, searched: Index, enrolled: set[str], progress: Callable[[int, int], None]
) -> list[str]:
    held = searched.keys()
    problems = [f"the index lacks face {face}" for face in sorted(enrolled - held)]
    problems += [f"the index holds face {face}, which is not enrolled" for face in sorted(held - enrolled)]
    done = 0
    _, batches = gallery.changes.snapshot()
    for faces, templates in batches:
        for face, found in zip(faces, searched.search(templates, 1), strict=True):
            # another face may have the same template
            if face in held and (not found or found[0].score < _SAME):
                problems.append(f"the index does not find face {face} by its own template")
        done += len(faces)
        progress(done, len(enrolled))
    return problems
