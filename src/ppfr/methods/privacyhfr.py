"""PrivacyHFR: images without their local means, or patterns that only the recogniser understands, travel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.distributed.global_batch import randn
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option
from ppfr.methods.common.patterns import EmbeddingMatch, Patterns, UpdateRule, find_patterns
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import Backbone
from ppfr.networks.inference import folded, reading_channel
from ppfr.transforms import remove_frequencies
from ppfr.util.errors import MethodError

# of the recogniser's three input channels the one that carries a pattern; the others are zero
PATTERN_CHANNEL = 1


class PrivacyHFROptions(MethodOptions):
    """Settings of PrivacyHFR."""

    pattern: Literal["dra", "none"] = payload_option(
        ["dra"], "dra sends a pattern with the image's embedding, none sends the HVI image, in which a face shows"
    )
    pattern_size: int | None = payload_option(
        [None], "largest side of a pattern in pixels; by default that of the recogniser's input", ge=1
    )
    iterations: int = payload_option([800], "updates of a pattern; the paper takes 800 to 1605", ge=1)
    stop_at: float | None = payload_option(
        [None], "a pattern is finished early when its embedding's cosine to the image's is this", gt=0, le=1
    )
    raw_range: bool = Field(
        True, description="detail at twice its contrast: the public code takes images in [-1,1] as if in [0,1]"
    )


class HVIClient(nn.Module):
    """The client: removes the local means; with patterns, it also holds the recogniser that they are made for."""

    def __init__(self, options: PrivacyHFROptions, recogniser: Backbone) -> None:
        super().__init__()
        self.options = options
        self.recogniser = recogniser if options.pattern == "dra" else None
        height, width = recogniser.input_size
        largest = options.pattern_size or max(height, width)
        self.pattern_shape = (1, min(height, largest), min(width, largest))

    def forward(self, images: Tensor) -> Tensor:
        """The HVI image (B,3,H,W), about [0,1] and not clamped, of images in [-1,1]."""
        return remove_frequencies(images, raw_range=self.options.raw_range)

    def find(self, images: Tensor, generator: torch.Generator, state_file: Path | None) -> Patterns:
        """The DRA step for images (B,3,H,W) in [-1,1]."""
        if self.recogniser is None:
            raise MethodError("privacyhfr: this client sends HVI images; patterns need options.pattern='dra'")
        with torch.inference_mode(False), torch.no_grad():
            network = folded(self.recogniser).requires_grad_(False)
            reader = folded(reading_channel(self.recogniser, PATTERN_CHANNEL)).requires_grad_(False)
            targets = network(self(images.clone()))
        start = randn((len(images), *self.pattern_shape), generator, images.device, targets.dtype)
        match = EmbeddingMatch(lambda patterns: reader(centred(patterns, reader.input_size)), targets)
        rule = UpdateRule(iterations=self.options.iterations, stop_at=self.options.stop_at)
        key = hashlib.sha256(targets.cpu().numpy().tobytes()).hexdigest()
        return find_patterns(start, [match], rule, state_file=state_file, key=key, title="privacyhfr: patterns")


class HFRServer(nn.Module):
    """The server: a recogniser that takes HVI images, or patterns in the middle channel of a zero image."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        embedding: Tensor = self.backbone(tensors["image"] if "image" in tensors else self.canvas(tensors["pattern"]))
        return embedding

    def canvas(self, patterns: Tensor) -> Tensor:
        """Place patterns (B,1,h,w) where the recogniser looks for them: (B,3,H,W)."""
        placed = centred(patterns, self.backbone.input_size)
        nothing = torch.zeros_like(placed)
        return torch.cat([nothing, placed, nothing], dim=1)


def centred(patterns: Tensor, size: tuple[int, int]) -> Tensor:
    """Surround patterns (B,1,h,w) by zeros to (B,1,*size)."""
    down, right = size[0] - patterns.shape[2], size[1] - patterns.shape[3]
    return F.pad(patterns, (right // 2, right - right // 2, down // 2, down - down // 2))


@register
class PrivacyHFR(Method):
    """Heterogeneous recognition on images without local means, sent as patterns (PrivacyHFR).

    What each payload protects. The HVI image (`pattern: none`, the paper's first step) only removes skin tone and
    shading: edges show the face, and the step is linear, so that it can be inverted on the frequencies that it keeps. A
    pattern (`pattern: dra`, both steps) starts from noise and depends on the embedding alone, so it leaks as much as a
    stored embedding, and nothing else of the image. Finding it costs `iterations` passes of the recogniser forwards and
    backwards for each image, on the client, which must therefore hold the recogniser.
    """

    info = MethodInfo(
        name="privacyhfr",
        title="PrivacyHFR",
        paper="PrivacyHFR: visual privacy preservation for heterogeneous face recognition (public code, b514e67)",
        departures=(
            "the target embedding is detached (the reference differentiates through it); with a teacher the "
            "recogniser's first layer is refitted to HVI images before training"
        ),
    )
    Options = PrivacyHFROptions
    options: PrivacyHFROptions
    client: HVIClient
    server: HFRServer

    def __init__(self, options: PrivacyHFROptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        # the server first: in a file, what both hold goes by the server's names
        self.server = HFRServer(backbone.build(3, generator))
        self.client = HVIClient(options, self.server.backbone)

    @property
    def schema(self) -> PayloadSchema:
        if self.options.pattern == "dra":
            spec = TensorSpec(self.client.pattern_shape, "a pattern in [0,1] with the embedding of the HVI image")
            return PayloadSchema(self.info.name, {"pattern": spec})
        spec = TensorSpec((3, *self.input_size), "the HVI image: RGB around 0.5 without local means, about [0,1]")
        return PayloadSchema(self.info.name, {"image": spec})

    def remarks(self) -> list[str]:
        """Says which of the two payloads was measured."""
        sent = {
            "dra": "sends patterns (both steps of the paper)",
            "none": "sends HVI images, the paper's first step alone: faces show in them; its second step, which hides "
            "them, is options.pattern=dra",
        }
        return [sent[self.options.pattern], *super().remarks()]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if self.options.pattern == "dra":
            return {"pattern": self.find_patterns(images, generator).pattern.float()}
        return {"image": self.client(images).float()}

    def protect_graph(self) -> ProtectGraph | NoGraph:
        if self.options.pattern == "dra":
            return NoGraph("a pattern is searched for by gradients; pattern='none' has one")
        return ProtectGraph(lambda images: {"image": self.client(images).float()})

    def find_patterns(self, images: Tensor, generator: torch.Generator, *, state_file: Path | None = None) -> Patterns:
        """The patterns that `protect` sends for images (B,3,H,W) in [-1,1], with cosines, losses and updates.

        With `state_file` a search that was stopped goes on; see `ppfr.methods.common.patterns.find_patterns`. Raises
        MethodError unless `options.pattern` is "dra".
        """
        return self.client.find(images, generator, state_file)

    def hypotheses(self) -> list[Hypothesis]:
        """The HVI image has one; a pattern none: its noise is one of too many to list."""
        return super().hypotheses() if self.options.pattern == "none" else []

    def stages(self) -> list[Stage]:
        """A classifier on the frozen recogniser, then both; always on HVI images, also where patterns are sent."""
        backbone, client = self.server.backbone, self.client

        def forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            return TrainingStep(backbone(client(images)))

        return [
            Stage(
                name="classifier",
                module=nn.ModuleList(),
                forward=forward,
                embedding_size=backbone.embedding_size,
                trunk=backbone,
                trunk_input=lambda images, generator: TrunkInput(client(images)),
            ),
            Stage(
                name="all",
                module=self.server,
                forward=forward,
                embedding_size=backbone.embedding_size,
                continues_head=True,
            ),
        ]
