"""A set of drawn faces for runs without data: `synthetic[:people=200,images=20,seed=0]`.

Every picture is a function of (seed, part, person, image) alone, so the same specification gives the same
set, and a larger one continues a smaller one. The people of the parts "train" and "test" are drawn apart
and share nobody.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ppfr.data.faceset import FaceSet, Indices
from ppfr.data.images import FACE_SIZE, Images
from ppfr.data.synthetic.person import Person
from ppfr.data.synthetic.traits import draw_hair, draw_shot, draw_traits
from ppfr.util.errors import DataError

SYNTHETIC = "synthetic"
DEFAULTS = {"people": 200, "images": 20, "seed": 0}
FEWEST_TEST_PEOPLE = 20
OCCASIONS = 4
"""A person's pictures are taken on so many occasions in turn, each with its own haircut."""


class SyntheticFaces(FaceSet):
    """`people` drawn people with `images` pictures each, (size, size, 3) RGB uint8, rendered when first asked for.

    `part` names the population ("train", "test"): different parts hold different people. Raises DataError
    for numbers below 1 (a seed below 0).
    """

    def __init__(
        self,
        people: int = DEFAULTS["people"],
        images: int = DEFAULTS["images"],
        seed: int = DEFAULTS["seed"],
        *,
        part: str = "train",
        size: int = FACE_SIZE,
    ) -> None:
        if min(people, images, size) < 1 or seed < 0:
            raise DataError(
                f"synthetic faces: people={people}, images={images}, seed={seed}, size={size}; "
                "expected at least 1 (seed: at least 0)"
            )
        digits = max(4, len(str(people - 1)))
        identities = [f"{part}{person:0{digits}d}" for person in range(people)]
        self._seed = (seed, zlib.crc32(part.encode()))
        self._per_person = images
        self._pictures = np.empty((people * images, size, size, 3), np.uint8)
        self._done = np.zeros(people * images, np.bool_)
        super().__init__(
            f"synthetic ({part}, {people} people, {images} images, seed {seed})",
            [identity for identity in identities for _ in range(images)],
            self._render,
            names=[f"{identity}/{image:03d}" for identity in identities for image in range(images)],
            size=size,
            synthetic=True,
        )

    def _render(self, indices: Indices) -> Images:
        wanted = np.unique(indices[~self._done[indices]])
        by_person = [wanted[wanted // self._per_person == person] for person in np.unique(wanted // self._per_person)]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(self._render_person, by_person))
        return self._pictures[indices]

    def _render_person(self, indices: Indices) -> None:
        number = int(indices[0]) // self._per_person
        traits = draw_traits(self._generator(number, 0))
        person = Person(traits, self._generator(number, 1), self.size)
        for occasion in range(OCCASIONS):
            on_it = indices[indices % self._per_person % OCCASIONS == occasion]
            if len(on_it):
                rng = self._generator(number, 2, occasion)
                person.wear(draw_hair(traits, rng), rng)
            for index in on_it:
                rng = self._generator(number, 3, int(index) % self._per_person)
                self._pictures[index] = person.photograph(draw_shot(rng), rng)
                self._done[index] = True

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, *key])


def is_synthetic(source: object) -> bool:
    """Whether a source is a specification of this generator rather than a path."""
    return isinstance(source, str) and source.partition(":")[0] == SYNTHETIC


def open_synthetic(spec: str, *, size: int = FACE_SIZE) -> tuple[SyntheticFaces, SyntheticFaces]:
    """The training and the test set of a specification `synthetic[:people=200,images=20,seed=0]`.

    `people` counts the training people; a quarter as many others, at least 20, are for testing. Raises
    DataError for an unknown key or a value that is no whole number.
    """
    options = _options(spec)
    people, images, seed = options["people"], options["images"], options["seed"]
    others = max(FEWEST_TEST_PEOPLE, people // 4)
    return (
        SyntheticFaces(people, images, seed, part="train", size=size),
        SyntheticFaces(others, images, seed, part="test", size=size),
    )


def _options(spec: str) -> dict[str, int]:
    options = dict(DEFAULTS)
    for item in filter(None, (part.strip() for part in spec.partition(":")[2].split(","))):
        key, _, value = (piece.strip() for piece in item.partition("="))
        if key not in DEFAULTS:
            raise DataError(f"{spec}: unknown key {key!r}; expected {', '.join(DEFAULTS)}")
        if not (value.isascii() and value.isdigit()):
            raise DataError(f"{spec}: {key}={value!r}; expected a whole number, as in {key}={DEFAULTS[key]}")
        options[key] = int(value)
    return options
