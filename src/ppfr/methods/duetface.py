"""DuetFace: high frequencies travel, and a small client network says where to look (Mi et al., ACM MM 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, secret_option
from ppfr.methods.common.parts import InputScale, client_trunk, split_for_memory
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import PFLD, Backbone, load_pfld
from ppfr.networks.base import reset_weights
from ppfr.networks.mobilefacenet import CLIENT_BLOCKS, MobileFaceNet
from ppfr.transforms import block_dct
from ppfr.transforms.roi import canonical_mask, hull_mask
from ppfr.util.errors import MethodError

# section 4.1: the low frequencies that show the face stay on the client
CLIENT_FREQUENCIES = (0, 1, 2, 3, 4, 5, 8, 9, 16, 24)
SERVER_FREQUENCIES = tuple(frequency for frequency in range(64) if frequency not in CLIENT_FREQUENCIES)
MAPS = ("map0", "map1", "map2", "map3")


class DuetFaceOptions(MethodOptions):
    """Settings of DuetFace."""

    client_backbone: str | None = Field(
        None,
        description="the client's MobileFaceNet; by default the server's network if it is one, else mobilefacenet",
    )
    roi: Literal["canonical", "landmarks"] = Field(
        "canonical",
        description="facial region: the hull of a canonical face, or of each image's 98 landmarks",
    )
    landmarks: str | None = secret_option(
        None,
        "published PFLD checkpoint, needed once with roi=landmarks: its weights are stored with the client's",
    )


class AttentionClient(nn.Module):
    """The client: a MobileFaceNet on the low frequencies; its features, projected to one channel, say where to look."""

    roi: Tensor
    landmarker_filled: Tensor

    def __init__(
        self,
        backbone: MobileFaceNet,
        sizes: list[tuple[int, int]],
        input_size: tuple[int, int],
        landmarker: PFLD | None,
    ) -> None:
        super().__init__()
        self.scale = InputScale(3 * len(CLIENT_FREQUENCIES))
        self.backbone = backbone
        self.landmarker = landmarker
        self.sizes = sizes
        shapes = backbone.block_shapes()
        self.projections = nn.ModuleList([_channel_mean(shapes[block][0]) for block in CLIENT_BLOCKS])
        self.register_buffer("roi", canonical_mask(input_size))
        # stored with the weights, so that a loaded client knows that its landmarker is not a fresh one
        self.register_buffer("landmarker_filled", torch.tensor(False))

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map in [0,1] for each server stage, (B,1,h,w), from images (B,3,H,W) in [-1,1]."""
        features = self.backbone.block_features(self.trunk_input(images), CLIENT_BLOCKS)
        region = self.region(images)
        return [
            attention_map(projection(found.float()), size, region)
            for projection, found, size in zip(self.projections, features, self.sizes, strict=True)
        ]

    def trunk_input(self, images: Tensor) -> Tensor:
        """The client's own channels (B,30,H,W), scaled."""
        scaled: Tensor = self.scale(low_channels(images))
        return scaled

    @torch.no_grad()
    def region(self, images: Tensor) -> Tensor:
        """The facial region of each image (B or 1,1,H,W): its landmarks' hull, the canonical one if that is empty."""
        if self.landmarker is None:
            return self.roi
        if not self.landmarker_filled:
            raise MethodError(
                "duetface: roi='landmarks' needs a trained landmark network; give its published checkpoint as "
                "options.landmarks, or use roi='canonical'"
            )
        height, width = images.shape[2:]
        landmarks = self.landmarker(images.float())
        mask = hull_mask(landmarks * landmarks.new_tensor([width, height]), (height, width))
        empty = mask.flatten(1).sum(1) == 0
        return torch.where(empty[:, None, None, None], self.roi, mask)


def _channel_mean(channels: int) -> nn.Conv2d:
    """A learned projection to one channel that starts as the plain mean over channels, which the paper describes."""
    with torch.device("meta"):
        projection = nn.Conv2d(channels, 1, 1)
    projection.to_empty(device="cpu")
    nn.init.constant_(projection.weight, 1.0 / channels)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    return projection


def attention_map(projected: Tensor, size: tuple[int, int], region: Tensor | None) -> Tensor:
    """Turn projected features (B,1,h,w) into a map (B,1,*size) in [0,1] that is zero outside the facial region.

    Resize, scale each image to [0,1], cut to the region, scale again (section 4.3). The region (B or 1,1,H,W) is
    resized with aligned corners, as the reference does.
    """
    mask = unit_range(F.interpolate(projected, size=size, mode="bilinear", align_corners=False))
    if region is not None:
        mask = mask * F.interpolate(region, size=size, mode="bilinear", align_corners=True)
    return unit_range(mask)


def unit_range(maps: Tensor) -> Tensor:
    """Scale each image's map to [0,1]; a constant map becomes zero."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    high = maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


class InteractiveFusion(nn.Module):
    """F <- s + w * mask * s with s = sigmoid(F) and a learned scalar w that starts at 0 (section 4.3).

    An affine map before the sigmoid and one behind it, the identity unless a warm start sets them, let a trunk that was
    trained without the fusion go on as if it were not there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.slope = nn.Parameter(torch.ones(channels))
        self.gain = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        # around its middle the sigmoid changes by little: bfloat16 would round it away
        with torch.autocast(features.device.type, enabled=False):
            squashed = torch.sigmoid(features.float() * self.slope[:, None, None])
            fused = squashed + self.gate * mask.float() * squashed
            return (fused * self.gain[:, None, None] + self.offset[:, None, None]).to(features.dtype)

    @torch.no_grad()
    def linearise(self, features: Tensor, level: float = 0.3) -> None:
        """Make the fusion nearly the identity on features (B,C,h,w) like these, while w is 0.

        With x = slope * F of root mean square `level` per channel, sigmoid(x) is 1/2 + x/4 up to x^3/48.
        """
        energy = features.float().square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-6)
        self.slope.copy_(level / energy)
        self.gain.copy_(4.0 / self.slope)
        self.offset.copy_(-0.5 * self.gain)


class DuetServer(nn.Module):
    """The server: a recogniser on the high frequencies; the client's maps join after each of its four stages."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale = InputScale(backbone.in_channels)
        self.backbone = backbone
        self.fusion = nn.ModuleList([InteractiveFusion(channels) for channels, _, _ in backbone.stage_shapes()])

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        def fuse(stage: int, features: Tensor) -> Tensor:
            fused: Tensor = self.fusion[stage](features, tensors[MAPS[stage]])
            return fused

        embedding: Tensor = self.backbone(self.scale(tensors["channels"]), after_stage=fuse)
        return embedding

    @torch.no_grad()
    def linearise(self, channels: Tensor) -> None:
        """Set every fusion nearly to the identity for a trunk that was trained without; one pass, stage by stage."""

        def measure(stage: int, features: Tensor) -> Tensor:
            fusion = self.fusion[stage]
            assert isinstance(fusion, InteractiveFusion)
            fusion.linearise(features)
            fused: Tensor = fusion(features, features.new_zeros(len(features), 1, *features.shape[2:]))
            return fused

        self.backbone(self.scale(channels), after_stage=measure)


@register
class DuetFace(Method):
    """High-frequency channels and four attention maps travel (Mi et al., ACM MM 2022)."""

    info = MethodInfo(
        name="duetface",
        title="DuetFace",
        paper="Mi et al., DuetFace: Collaborative PPFR via Channel Splitting in the Frequency Domain, ACM MM 2022",
        departures=(
            "the map's 1x1 convolution is one learned projection on the client (the reference draws a new random one "
            "at every pass); a learned affine around the fusion's sigmoid admits a warm start"
        ),
    )
    Options = DuetFaceOptions
    options: DuetFaceOptions
    client: AttentionClient
    server: DuetServer

    def __init__(self, options: DuetFaceOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        trunk = backbone.build(3 * len(SERVER_FREQUENCIES), generator)
        own = backbone.name if isinstance(trunk, MobileFaceNet) else "mobilefacenet"
        chosen = options.client_backbone or own
        client = client_trunk("duetface", chosen, backbone, 3 * len(CLIENT_FREQUENCIES), generator)
        sizes = [(height, width) for _, height, width in trunk.stage_shapes()]
        landmarker = None
        if options.roi == "landmarks":
            with torch.device("meta"):
                landmarker = PFLD()
            reset_weights(landmarker.to_empty(device="cpu"), generator)
        self.client = AttentionClient(client, sizes, self.input_size, landmarker)
        if landmarker is not None and options.landmarks is not None:
            landmarker.load_state_dict(load_pfld(Path(options.landmarks)).state_dict())
            self.client.landmarker_filled.fill_(True)
        self.server = DuetServer(trunk)

    @property
    def schema(self) -> PayloadSchema:
        tensors = {
            "channels": TensorSpec(
                (3 * len(SERVER_FREQUENCIES), *self.input_size),
                "54 high frequencies of Y, Cb, Cr, colour-major",
                block_dct=True,
            )
        }
        for name, size in zip(MAPS, self.client.sizes, strict=True):
            tensors[name] = TensorSpec((1, *size), "attention in [0,1]")
        return PayloadSchema(self.info.name, tensors)

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        maps = self.client(images.float())
        return {"channels": high_channels(images), **dict(zip(MAPS, maps, strict=True))}

    def weakened(self) -> Hypothesis:
        """The low frequencies travel, too, in place of the highest; no maps."""
        frequencies = (*CLIENT_FREQUENCIES, *SERVER_FREQUENCIES[: -len(CLIENT_FREQUENCIES)])

        def apply(images: Tensor) -> dict[str, Tensor]:
            maps = {
                name: images.new_zeros(len(images), 1, *size)
                for name, size in zip(MAPS, self.client.sizes, strict=True)
            }
            return {"channels": block_dct(images, frequencies).float().flatten(1, 2), **maps}

        return Hypothesis("low frequencies sent, too", apply)

    def protect_graph(self) -> ProtectGraph | NoGraph:
        if self.client.landmarker is not None:
            return NoGraph("the region of roi='landmarks' is a hull that is found point by point; use roi='canonical'")
        return ProtectGraph(lambda images: self._protect(images, torch.Generator()))

    def stages(self) -> list[Stage]:
        """First the client's network on its own, then the server with the client's network frozen."""
        client, server = self.client, self.server

        def client_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            return TrainingStep(client.backbone(client.trunk_input(images)))

        def server_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            return TrainingStep(server(self._protect(images, generator)))

        def server_calibrate(images: Tensor, generator: torch.Generator) -> None:
            server.scale.calibrate_in_parts(map(high_channels, split_for_memory(images, server.backbone.in_channels)))

        return [
            Stage(
                name="client",
                module=client.backbone,
                forward=client_forward,
                embedding_size=client.backbone.embedding_size,
                trunk=client.backbone,
                trunk_input=lambda images, generator: TrunkInput(client.trunk_input(images)),
                calibrate=lambda images, generator: client.scale.calibrate(low_channels(images)),
            ),
            Stage(
                name="server",
                module=nn.ModuleList([server, client.projections]),
                forward=server_forward,
                embedding_size=server.backbone.embedding_size,
                trunk=server.backbone,
                trunk_input=lambda images, generator: TrunkInput(server.scale(high_channels(images))),
                calibrate=server_calibrate,
                after_warm_start=lambda images, generator: server.linearise(high_channels(images)),
            ),
        ]


def low_channels(images: Tensor) -> Tensor:
    """The low-frequency channels that stay on the client, (B,30,H,W), colour-major."""
    return block_dct(images, CLIENT_FREQUENCIES).float().flatten(1, 2)


def high_channels(images: Tensor) -> Tensor:
    """The high-frequency channels that are sent, (B,162,H,W), colour-major."""
    return block_dct(images, SERVER_FREQUENCIES).float().flatten(1, 2)
