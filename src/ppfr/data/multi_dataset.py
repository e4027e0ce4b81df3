"""Several data sets in one run: their batches side by side, their people kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppfr.data.batches import Augmentation, Batch, Batches, in_turn
from ppfr.data.faceset import FaceSet, Indices
from ppfr.data.images import Images
from ppfr.util.errors import DataError


@dataclass(frozen=True)
class Member:
    """One data set among several: where its images and people begin, and its part in training.

    `share` is its part of every batch in proportion to the others', `weight` the factor on its margin loss.
    """

    faces: FaceSet
    first_image: int
    first_person: int
    share: float
    weight: float


class JointFaces(FaceSet):
    """Data sets one behind the other as one, people of different sets apart even under one name.

    Raises DataError for fewer than two sets, two of one name, sets of different image sizes, or shares and weights not
    above 0.
    """

    def __init__(self, sets: Sequence[FaceSet], shares: Sequence[float], weights: Sequence[float]) -> None:
        if len(sets) < 2 or len({faces.name for faces in sets}) < len(sets):
            raise DataError(f"cannot join {[faces.name for faces in sets]}; expected two sets or more, each once")
        if len({faces.size for faces in sets}) > 1:
            raise DataError(f"cannot join sets of image sizes {[faces.size for faces in sets]}; expected one size")
        if not len(sets) == len(shares) == len(weights) or min(*shares, *weights) <= 0:
            raise DataError(f"shares {list(shares)} and weights {list(weights)}; expected one above 0 for each set")
        images = np.cumsum([0, *(len(faces) for faces in sets)])
        people = np.cumsum([0, *(len(faces.identities) for faces in sets)])
        self.members = [
            Member(faces, int(images[at]), int(people[at]), shares[at], weights[at]) for at, faces in enumerate(sets)
        ]
        super().__init__(
            " + ".join(faces.name for faces in sets),
            [f"{faces.name}/{person}" for faces in sets for person in faces.identities],
            self._read_members,
            names=[f"{faces.name}/{name}" for faces in sets for name in faces.names],
            labels=np.concatenate([member.faces.labels + member.first_person for member in self.members]),
            size=sets[0].size,
            skipped=[skipped for faces in sets for skipped in faces.skipped],
            synthetic=any(faces.synthetic for faces in sets),
        )

    def _read_members(self, wanted: Indices) -> Images:
        result = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        for member in self.members:
            own = (wanted >= member.first_image) & (wanted < member.first_image + len(member.faces))
            if own.any():
                result[own] = member.faces.images(wanted[own] - member.first_image)
        return result


class JointBatches:
    """Batches that hold a fixed number of images of each set, set by set; an epoch passes through the longest once.

    The others are repeated, reshuffled, as often as needed. The arguments are those of `Batches`.
    Raises DataError as `Batches` does, and for a batch too small to give every set an image of each rank.
    """

    def __init__(
        self,
        faces: JointFaces,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        augmentation: Augmentation = Augmentation(),
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: bool = False,
    ) -> None:
        self.faces, self.seed, self.epoch, self.augmentation = faces, seed, epoch, augmentation
        self.start_batch, self.rank, self.world, self.prefetch = start_batch, rank, world, prefetch
        self._whole = split_batch([member.share for member in faces.members], batch_size, world)
        # the pass that each set is in: its shuffle takes time for millions of images
        self._passes: dict[int, Batches] = {}
        self._lengths = [len(self._batches(at, 0)) for at in range(len(self._whole))]

    def __len__(self) -> int:
        """Batches in the whole epoch."""
        return max(self._lengths)

    def __iter__(self) -> Iterator[Batch]:
        return in_turn(self.batch, range(self.start_batch, len(self)), prefetch=self.prefetch)

    def batch(self, number: int) -> Batch:
        """This rank's part of batch `number` of the epoch."""
        parts = []
        for at, member in enumerate(self.faces.members):
            # a set counts its own passes, over all epochs
            own_pass, own_number = divmod(self.epoch * len(self) + number, self._lengths[at])
            images, labels, indices = self._batches(at, own_pass).batch(own_number)
            parts.append(Batch(images, labels + member.first_person, indices + member.first_image))
        return Batch(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _batches(self, at: int, own_pass: int) -> Batches:
        if at not in self._passes or self._passes[at].epoch != own_pass:
            self._passes[at] = Batches(
                self.faces.members[at].faces,
                self._whole[at],
                seed=self.seed * 1009 + at,
                epoch=own_pass,
                augmentation=self.augmentation,
                rank=self.rank,
                world=self.world,
            )
        return self._passes[at]


def split_batch(shares: Sequence[float], batch_size: int, world: int = 1) -> list[int]:
    """Images of each set in a batch: multiples of `world` nearest to the shares that add up to `batch_size`.

    Raises DataError when a set would get none, or `batch_size` is no multiple of `world`.
    """
    units, rest = divmod(batch_size, world)
    wanted = [share / sum(shares) * units for share in shares]
    given = [int(value) for value in wanted]
    by_remainder = sorted(range(len(shares)), key=lambda at: given[at] - wanted[at])
    for at in by_remainder[: units - sum(given)]:
        given[at] += 1
    if rest or min(given) < 1:
        raise DataError(
            f"a batch of {batch_size} images over {world} ranks cannot be split by the shares {list(shares)}; expected "
            "a multiple of the ranks, and an image of every set for each of them"
        )
    return [size * world for size in given]
