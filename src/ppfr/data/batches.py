"""Training batches whose every random draw is a function of (seed, epoch, batch number), for exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.data.faceset import FaceSet, Indices
from ppfr.data.images import Images, to_tensor
from ppfr.util.errors import DataError

BLUR_SIGMA = (0.5, 1.6)
Draws = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """Images (B, 3, H, W) float32 in [-1, 1], labels (B,) int64 and indices (B,) int64 in the set."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image, each drawn on its own.

    `flip`: mirrored half of the time. `shift`: moved by up to so many pixels each way, the border
    repeated. `jitter`: contrast times 1 +- jitter about the image's mean, and brightness +- jitter of half
    the range. `grayscale`, `blur`: replaced by its luma, smoothed by a Gaussian of sigma 0.5..1.6, with these
    probabilities. Raises DataError for a value out of range.
    """

    flip: bool = True
    shift: int = 0
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            most = 56 if option.name == "shift" else 1
            if not 0 <= value <= most:
                raise DataError(f"augmentation {option.name} is {value}; expected 0..{most}")


class Batches:
    """One epoch of shuffled, augmented training batches of a `FaceSet`.

    `batch_size` is the size over all ranks. Batch b of an epoch holds the same images with the same
    augmentation whatever `world` is; each rank gets every `world`-th of them. `start_batch` resumes inside
    the epoch: what follows is what would have followed. `drop_last` leaves out the images that do not fill a
    batch (others each epoch); `prefetch` prepares the next batch in a thread, which pays when images must be
    decoded or a GPU waits. Raises DataError when the numbers do not fit each other.
    """

    def __init__(
        self,
        faces: FaceSet,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        augmentation: Augmentation = Augmentation(),
        drop_last: bool = True,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: bool = False,
    ) -> None:
        if not 0 <= rank < world or batch_size < 1 or batch_size % world:
            raise DataError(
                f"batch_size {batch_size} for rank {rank} of {world}; expected a multiple of the ranks, "
                "and a rank below it"
            )
        if min(seed, epoch, start_batch) < 0:
            raise DataError(f"seed {seed}, epoch {epoch}, start_batch {start_batch}; expected none below 0")
        rest = len(faces) % batch_size
        if drop_last and len(faces) < batch_size:
            raise DataError(f"{faces.name}: {len(faces)} images do not fill a batch of {batch_size}")
        if not drop_last and 0 < rest < world:
            raise DataError(f"{faces.name}: the last batch has {rest} images for {world} ranks; drop it")
        self.faces = faces
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.augmentation = augmentation
        self.start_batch = start_batch
        self.rank = rank
        self.world = world
        self.prefetch = prefetch
        self.order: Indices = np.random.default_rng([seed, epoch]).permutation(len(faces))
        self._count = len(faces) // batch_size + (0 if drop_last or not rest else 1)

    def __len__(self) -> int:
        """Batches in the whole epoch, `start_batch` or not."""
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return in_turn(self.batch, range(self.start_batch, len(self)), prefetch=self.prefetch)

    def batch(self, number: int) -> Batch:
        """This rank's part of batch `number` (0..len - 1) of the epoch, in any order of asking."""
        if not 0 <= number < len(self):
            raise DataError(f"{self.faces.name}: there is no batch {number}; the epoch has 0..{len(self) - 1}")
        whole = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        mine = slice(self.rank, None, self.world)
        indices = whole[mine]
        # drawn for all ranks alike, so that the number of ranks changes nothing
        draws = np.random.default_rng([self.seed, self.epoch, number]).random((len(whole), 8), np.float32)[mine]
        images = augment(self.faces.images(indices), draws, self.augmentation)
        return Batch(images, torch.from_numpy(self.faces.labels[indices]), torch.from_numpy(indices.copy()))


def in_turn(batch: Callable[[int], Batch], numbers: range, *, prefetch: bool) -> Iterator[Batch]:
    """Batches of consecutive `numbers`; with `prefetch` the next is prepared in a thread while one is used."""
    if not prefetch:
        yield from map(batch, numbers)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(batch, numbers[0]) if numbers else None
        for number in numbers:
            assert coming is not None
            ready = coming.result()
            if number + 1 < numbers.stop:
                coming = thread.submit(batch, number + 1)
            yield ready


def augment(images: Images, draws: Draws, how: Augmentation) -> Tensor:
    """Augment uint8 RGB (B, H, W, 3) by uniform `draws` (B, 8) in [0, 1); float32 (B, 3, H, W) in [-1, 1]."""
    changed = np.stack([_change(image, row, how) for image, row in zip(images, draws, strict=True)])
    batch = to_tensor(np.asarray(changed, np.uint8))
    if how.jitter:
        contrast, brightness = torch.from_numpy(how.jitter * (2 * draws[:, 3:5] - 1)).T[:, :, None, None, None]
        mean = batch.mean(dim=(1, 2, 3), keepdim=True)
        batch = batch.mul_(1 + contrast).add_(brightness - contrast * mean).clamp_(-1, 1)
    return batch


def _change(image: Images, draws: Draws, how: Augmentation) -> cv2.typing.MatLike:
    """What is done to one image in 8 bits: shift, flip, grey, blur."""
    flip, down, right, _, _, grayscale, blur, sigma = draws
    changed: cv2.typing.MatLike = image
    if how.shift:
        changed = _shift(changed, int(down * (2 * how.shift + 1)), int(right * (2 * how.shift + 1)), how.shift)
    if how.flip and flip < 0.5:
        changed = cv2.flip(changed, 1)
    if grayscale < how.grayscale:
        changed = cv2.cvtColor(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blur < how.blur:
        low, high = BLUR_SIGMA
        changed = cv2.GaussianBlur(changed, (0, 0), float(low + (high - low) * sigma), borderType=cv2.BORDER_REPLICATE)
    return changed


def _shift(image: cv2.typing.MatLike, down: int, right: int, most: int) -> cv2.typing.MatLike:
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, most, most, most, most, cv2.BORDER_REPLICATE)
    return padded[down : down + height, right : right + width]
