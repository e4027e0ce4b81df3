"""From a model and faces to figures: embed every face as a deployment would, then verify pairs of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppfr.data.faceset import FaceSet, Indices
from ppfr.data.formats.carray import is_carray, load_carray
from ppfr.data.formats.pair_files import is_pair_list, open_pairs
from ppfr.data.images import FACE_SIZE, Images, Source, to_tensor
from ppfr.data.pairs import PairedImages, PairSet, draw_pairs
from ppfr.data.sources import holds_splits, open_faces, open_splits
from ppfr.evaluation.cost import evaluating
from ppfr.evaluation.metrics.roc import FARS
from ppfr.evaluation.metrics.statistics import REPLICATES
from ppfr.evaluation.metrics.verification import FOLDS, Verification, verification
from ppfr.methods import Method
from ppfr.networks import Recogniser
from ppfr.util.errors import DataError

Model = Method | Recogniser
Progress = Callable[[int, int], None]

# activations of larger batches leave a CPU's cache: see ppfr.networks.recogniser
BATCH_SIZE = 32
PAIRS = 3000


def model_input_size(model: Model) -> int:
    """Height and width of the crops that a model is given; a recogniser fits them to its own size."""
    return model.input_size[0] if isinstance(model, Method) else FACE_SIZE


def embed_faces(
    model: Model,
    faces: FaceSet | Images,
    indices: npt.ArrayLike | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    flip: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Embed faces, uint8 RGB (N, H, W, 3) or a set's images at `indices`, as (N, D) float32, not normalised.

    A method protects each image with fresh draws from a generator seeded by `seed` and embeds the payload; a
    `Recogniser` sees the clear image. With `flip` the mirrored image is a second query with draws of its own,
    and the two embeddings are added as they are (the sum that InsightFace and TFace normalise afterwards): a
    client then sends two payloads a face. `progress(done, total)` is called after each batch. The model runs
    where its parameters are. Raises DataError for input that is not images and what `Method.protect` raises.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected at least 1")
    read = faces.images if isinstance(faces, FaceSet) else faces.__getitem__
    rows = np.arange(len(faces)) if indices is None else np.asarray(indices, np.int64)
    if not len(rows):
        raise DataError("no face to embed; expected at least one image")
    embed, device = _embedder(model, flip, seed)
    parts: list[Tensor] = []
    with evaluating(model) if isinstance(model, Method) else nullcontext(), torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            images = to_tensor(read(rows[start : start + batch_size]))
            parts.append(embed(images.to(device)).float().cpu())
            if progress is not None:
                progress(min(start + batch_size, len(rows)), len(rows))
    embeddings: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return embeddings


def _embedder(model: Model, flip: bool, seed: int) -> tuple[Callable[[Tensor], Tensor], torch.device]:
    """What turns images into embeddings, and where it wants them."""
    if isinstance(model, Recogniser):
        weights = [] if model.backbone is None else list(model.backbone.parameters())
        return partial(model.embed, flip=flip), weights[0].device if weights else torch.device("cpu")
    device = next((weight.device for weight in model.server.parameters()), torch.device("cpu"))
    # a stream for each side: an upright image draws the same whether or not the mirrored one is asked for
    upright, mirrored = (torch.Generator(device).manual_seed(2 * seed + side) for side in (0, 1))

    def embed(images: Tensor) -> Tensor:
        embeddings = model.embed(model.protect(images, upright))
        if flip:
            embeddings = embeddings + model.embed(model.protect(images.flip(-1), mirrored))
        return embeddings

    return embed, device


def open_evaluation(
    source: Source, *, size: int = FACE_SIZE, strict: bool = False, seed: int = 0
) -> FaceSet | PairedImages:
    """Open what `evaluate_pairs` takes: pairs of a `.bin` file, a list or an array by bcolz, else a labelled set.

    Of a source that holds a training and a test set (see `ppfr.data.sources.open_splits`) the test set.
    Raises DataError.
    """
    path = Path(source)
    if is_carray(path):
        return load_carray(path, size=size)
    suffix = path.suffix.lower()
    if suffix == ".bin" or (suffix == ".csv" and path.is_file() and is_pair_list(path)):
        return open_pairs(path, size=size, strict=strict)
    if holds_splits(source):
        return open_splits(source, size=size, strict=strict, seed=seed)[1]
    return open_faces(source, size=size, strict=strict)


def open_test_faces(source: Source, *, size: int = FACE_SIZE, strict: bool = False, seed: int = 0) -> FaceSet:
    """The labelled test set of a source; raises DataError for pairs without identities, and as `open_evaluation`."""
    faces = open_evaluation(source, size=size, strict=strict, seed=seed)
    if not isinstance(faces, FaceSet):
        raise DataError(f"{source} is a list of pairs; give faces with identities")
    return faces


def evaluate_pairs(
    model: Model,
    faces: FaceSet | PairedImages | Source,
    *,
    genuine: int = PAIRS,
    impostor: int = PAIRS,
    batch_size: int = BATCH_SIZE,
    flip: bool = True,
    folds: int = FOLDS,
    fars: Sequence[float] = FARS,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Verify pairs of faces with a model; each image is embedded once, by `embed_faces`.

    From a labelled set `draw_pairs` draws up to `genuine` and `impostor` pairs, and the intervals resample
    people; a pair list or `.bin` file brings its own pairs and does not name people, so pairs are resampled.
    A source is opened by `open_evaluation`. `seed` fixes the pairs, the method's draws and the resampling.
    Raises DataError for sets without pairs, or with fewer than `folds`.
    """
    if isinstance(faces, (str, os.PathLike)):
        faces = open_evaluation(faces)
    images: FaceSet | Images
    if isinstance(faces, FaceSet):
        images, test = faces, draw_pair_test(faces, genuine=genuine, impostor=impostor, seed=seed)
    else:
        images, test = faces.images, PairTest(faces.pairs)
    embeddings = embed_faces(model, images, test.rows, batch_size=batch_size, flip=flip, seed=seed, progress=progress)
    return test.verify(embeddings, folds=folds, fars=fars, replicates=replicates, seed=seed)


class PairTest:
    """A verification test on pairs of images, of which each is embedded once.

    `rows` (M,) int64 are the images that the pairs use. With the `labels` (N,) of all images the intervals resample
    people, without pairs.
    """

    def __init__(self, pairs: PairSet, labels: Indices | None = None) -> None:
        self.rows, position = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
        self._first, self._second = position.reshape(2, -1)
        self._same = pairs.same
        self._people = None if labels is None else (labels[pairs.first], labels[pairs.second])

    def verify(
        self,
        embeddings: npt.NDArray[np.float32],
        *,
        folds: int = FOLDS,
        fars: Sequence[float] = FARS,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Verification:
        """Verify the pairs by the embeddings (M, D) of `rows`; see `verification`."""
        return verification(
            embeddings[self._first],
            embeddings[self._second],
            self._same,
            folds=folds,
            fars=fars,
            groups=self._people,
            replicates=replicates,
            seed=seed,
        )


def draw_pair_test(faces: FaceSet, *, genuine: int = PAIRS, impostor: int = PAIRS, seed: int = 0) -> PairTest:
    """A test on pairs drawn from a labelled set by `draw_pairs`."""
    pairs = draw_pairs(faces.labels, genuine=genuine, impostor=impostor, seed=seed, name=faces.name)
    return PairTest(pairs, faces.labels)
