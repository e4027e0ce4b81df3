"""Frozen face recognisers from ONNX files and published checkpoints, used as teachers and judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ppfr.networks.base import Backbone
from ppfr.networks.checkpoints import load_checkpoint
from ppfr.networks.inference import folded
from ppfr.networks.onnxfile import OnnxNetwork
from ppfr.networks.preprocessing import ChannelOrder, Preprocessing, Triple
from ppfr.util.errors import CheckpointError, ShapeError
from ppfr.util.files import sha256_file

# On a CPU the activations of a batch should stay in the cache: MobileFaceNet takes about 4 ms an image in
# batches of 16 and 8 ms in batches of 64 (one core).
CPU_BATCH = 16
GPU_BATCH = 512

IMAGENET_MEAN: Triple = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD: Triple = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# ONNX files say nothing about their preprocessing; these are known to need other than InsightFace's, by
# SHA-256
KNOWN_FILES = {
    # a MobileFaceNet variant trained on refined MS-Celeb-1M, 128-d
    "b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507": Preprocessing(
        mean=IMAGENET_MEAN, std=IMAGENET_STD, source="known file"
    ),
}


class Recogniser:
    """A frozen recogniser: RGB images in [-1, 1] to embeddings, with its own preprocessing.

    `name` is the file's name, `architecture` the backbone's name or "onnx", `preprocessing` what it does to
    images (print it in reports). `backbone` is the network as loaded, for its weights and for gradients, or
    None for ONNX; `embed` runs a copy of it with folded batch norms.
    """

    def __init__(
        self,
        *,
        name: str,
        sha256: str,
        architecture: str,
        embedding_size: int,
        preprocessing: Preprocessing,
        network: Backbone | OnnxNetwork,
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.architecture = architecture
        self.embedding_size = embedding_size
        self.preprocessing = preprocessing
        self.backbone = network if isinstance(network, Backbone) else None
        self._network = folded(network) if isinstance(network, Backbone) else network

    def to(self, device: torch.device | str) -> Self:
        """Move the backbone; an ONNX network stays on the CPU and takes images from any device."""
        for network in (self.backbone, self._network):
            if isinstance(network, Backbone):
                network.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Embed `images`, (B, 3, H, W) RGB in [-1, 1], as (B, embedding_size) float32, not normalised.

        `flip` adds the embedding of the mirrored image, both as the network gives them: the usual flip
        test. Any number of images is taken and worked through in batches. No gradient flows: for one, call
        `backbone(preprocessing(images))`. Raises ShapeError.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W)")
        if not len(images):
            return images.new_zeros((0, self.embedding_size), dtype=torch.float32)
        batches = torch.split(images, CPU_BATCH if images.device.type == "cpu" else GPU_BATCH)
        return torch.cat([self._embed_batch(batch, flip=flip) for batch in batches])

    def _embed_batch(self, images: Tensor, *, flip: bool) -> Tensor:
        inputs = self.preprocessing(images.float()).contiguous(memory_format=torch.channels_last)
        embeddings = self._network(inputs)
        if flip:
            embeddings = embeddings + self._network(inputs.flip(-1))
        return embeddings

    def __repr__(self) -> str:
        return f"Recogniser({self.name}: {self.architecture}, {self.embedding_size}-d, {self.preprocessing})"


def load_recogniser(
    path: Path | str,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channel_order: ChannelOrder | None = None,
) -> Recogniser:
    """Load a recogniser from an ONNX file or any checkpoint that `load_checkpoint` knows.

    Preprocessing that is not given is read: from the checkpoint's convention; for ONNX the size from the
    graph and the rest from a table of known files, else InsightFace's: RGB, (pixel - 127.5) / 127.5, or
    plain pixels when the graph itself opens with a subtraction and a multiplication. `size` is (height,
    width); `mean` and `std` are three 8-bit pixel values in RGB order. Raises CheckpointError and, for
    settings that contradict each other, ShapeError.
    """
    path = Path(path)
    load = _load_onnx if path.suffix.lower() == ".onnx" else _load_backbone
    recogniser = load(path)
    given = {
        "size": size,
        "mean": None if mean is None else tuple(mean),
        "std": None if std is None else tuple(std),
        "channel_order": channel_order,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        source = f"{', '.join(changes)} given; else {recogniser.preprocessing.source}"
        recogniser.preprocessing = replace(recogniser.preprocessing, **changes, source=source)  # type: ignore[arg-type]
    return recogniser


def _load_backbone(path: Path) -> Recogniser:
    checkpoint = load_checkpoint(path)
    backbone = checkpoint.backbone
    if backbone.in_channels != 3:
        raise CheckpointError(
            f"{path.name} holds a {backbone.name} for {backbone.in_channels} input channels; "
            "a recogniser of images needs 3"
        )
    return Recogniser(
        name=path.name,
        sha256=checkpoint.sha256,
        architecture=backbone.name,
        embedding_size=backbone.embedding_size,
        preprocessing=checkpoint.preprocessing,
        network=backbone,
    )


def _load_onnx(path: Path) -> Recogniser:
    network = OnnxNetwork(path)
    sha256 = sha256_file(path)
    preprocessing = KNOWN_FILES.get(sha256)
    if preprocessing is None and network.normalises_itself():
        preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), source="the graph normalises pixels itself")
    elif preprocessing is None:
        preprocessing = Preprocessing(source="InsightFace convention, assumed")
    preprocessing = replace(preprocessing, size=network.size or preprocessing.size)
    probe = network(preprocessing(torch.zeros(1, 3, *preprocessing.size)))
    return Recogniser(
        name=path.name,
        sha256=sha256,
        architecture="onnx",
        embedding_size=probe.shape[1],
        preprocessing=preprocessing,
        network=network,
    )
