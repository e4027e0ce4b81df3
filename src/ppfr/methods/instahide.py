"""InstaHide: mixtures of several images with random signs travel (Huang et al., ICML 2020). It is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ppfr.distributed.global_batch import rand
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import ChannelServer, server_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Mixture, Stage, TrainingStep
from ppfr.networks import Backbone
from ppfr.util.errors import MethodError

# no image of a mixture weighs more, section 4
LARGEST_WEIGHT = 0.65
_PUBLIC_IMAGES = 64


class InstaHideOptions(MethodOptions):
    """Settings of InstaHide."""

    k: int = Field(4, ge=1, le=16, description="images in a mixture, one of them the client's own")
    signs: bool = Field(True, description="flip the sign of every value of a mixture at random")
    partners: Literal["cross", "inside"] = Field(
        "cross",
        description="what is mixed in: public textures, or other images that are protected together with this one",
    )


class MixingClient(nn.Module):
    """The client: mixes each image with k - 1 others and flips signs."""

    public: Tensor

    def __init__(self, options: InstaHideOptions, size: tuple[int, int]) -> None:
        super().__init__()
        self.options = options
        # the same for everyone, so that it need not be stored
        self.register_buffer("public", textures(_PUBLIC_IMAGES, size, torch.Generator().manual_seed(0)), False)

    def forward(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Mixture]:
        """Mixtures (B,3,H,W) of images in [-1,1], and which rows of the batch each one shows with which weight.

        In a mixture with public textures only its own row counts, with weight 1. Raises MethodError for mixing inside
        fewer images than `k`.
        """
        count, k = len(images), self.options.k
        weights = draw_weights(count, k, generator, images.device)
        own = torch.arange(count, device=images.device)[:, None]
        if self.options.partners == "cross":
            ranks = rand((count, len(self.public)), generator, images.device)
            others = self.public[ranks.argsort(1)[:, : k - 1]]
            shown = Mixture(own, torch.ones_like(weights[:, :1]))
        else:
            rows = torch.cat([own, draw_partners(count, k - 1, generator, images.device)], 1)
            others, shown = images[rows[:, 1:]], Mixture(rows, weights)
        mixed = weights[:, 0, None, None, None] * images
        mixed = mixed + (weights[:, 1:, None, None, None] * others).sum(1)
        if self.options.signs:
            mixed = torch.where(rand(mixed.shape, generator, images.device) < 0.5, mixed, -mixed)
        return mixed, shown


class MixtureServer(ChannelServer):
    """A recogniser on mixtures; of flipped ones it sees the absolute values, for random signs say nothing."""

    def __init__(self, backbone: Backbone, signs: bool) -> None:
        super().__init__(backbone, "image", scaled=False)
        self.signs = signs

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        mixed = tensors[self.tensor]
        return mixed.abs() if self.signs else mixed


@register
class InstaHide(Method):
    """Mixtures of k images with random weights and random signs travel (Huang et al., ICML 2020).

    Inside mixing takes partners from the images that are protected together and trains on mixed labels: the client is
    the owner of a data set. Cross mixing takes them from public textures and works for one query. With k = 1 and no
    signs it is the unprotected method.

    Not a protection: Carlini et al. recover the images from such mixtures.
    """

    info = MethodInfo(
        name="instahide",
        title="InstaHide",
        paper="Huang et al., InstaHide: Instance-hiding Schemes for Private Distributed Learning, ICML 2020",
        departures=(
            "the client's image has the largest weight, and weights above 0.65 are cut to it; public images are 1/f "
            "textures, of which cross mixing takes all k - 1 partners (the paper: patches of ImageNet, and two private "
            "images among the k); the recogniser sees absolute values, as random signs carry nothing"
        ),
    )
    Options = InstaHideOptions
    options: InstaHideOptions
    client: MixingClient
    server: MixtureServer

    def __init__(self, options: InstaHideOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = MixingClient(options, self.input_size)
        self.server = MixtureServer(backbone.build(3, generator), options.signs)

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((3, *self.input_size), "the mixture, RGB in [-1,1]")
        return PayloadSchema(self.info.name, {"image": spec})

    def remarks(self) -> list[str]:
        """Says that it is broken, and by whom."""
        return [
            "broken: Carlini et al. (Is Private Learning Possible with Instance Encoding?, IEEE S&P 2021) recover "
            "the images from InstaHide's mixtures; shown for comparison only",
            *super().remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": self.client(images.float(), generator)[0]}

    def protect_graph(self) -> NoGraph:
        return NoGraph("an image is mixed with others of a set that the client holds and draws from")

    def hypotheses(self) -> list[Hypothesis]:
        """None: weights are real numbers, and signs too many to list; of an image alone, one."""
        return super().hypotheses() if self.options.k == 1 and not self.options.signs else []

    def weakened(self) -> Hypothesis:
        """The image alone, without flipped signs."""
        return Hypothesis("one image alone, no signs flipped", lambda images: {"image": images.float()})

    def stages(self) -> list[Stage]:
        def forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            mixed, shown = self.client(images.float(), generator)
            return TrainingStep(self.server({"image": mixed}), mixture=shown)

        return [replace(server_stage(self.server, self._protect), forward=forward)]


def draw_weights(count: int, k: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Weights (count,k) of sum 1, the largest first, none above 0.65 if there are several."""
    drawn = rand((count, k), generator, device).clamp_min(1e-6)
    weights = (drawn / drawn.sum(1, keepdim=True)).sort(1, descending=True).values
    if k == 1:
        return weights
    first = weights[:, :1].clamp_max(LARGEST_WEIGHT)
    return torch.cat([first, weights[:, 1:] * (1 - first) / weights[:, 1:].sum(1, keepdim=True)], 1)


def draw_partners(count: int, partners: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """For each of `count` rows others of them, (count, partners), all different."""
    if count <= partners:
        raise MethodError(
            f"instahide: {count} images are protected together, fewer than the k = {partners + 1} of a mixture inside; "
            "protect more at a time, or set options.partners=cross"
        )
    ranks = rand((count, count), generator, device)
    return ranks.fill_diagonal_(2.0).argsort(1)[:, :partners]


def textures(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Smooth coloured noise (count,3,H,W) in [-1,1] whose amplitude falls with frequency as that of photographs."""
    height, width = size
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    spectrum = torch.fft.rfft2(torch.randn((count, 3, height, width), generator=generator))
    waves = torch.fft.irfft2(spectrum / frequency.clamp_min(1 / max(size)), s=size)
    scaled: Tensor = waves / (3 * waves.std(dim=(1, 2, 3), keepdim=True))
    return scaled.clamp(-1, 1)
