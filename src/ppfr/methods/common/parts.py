"""Parts that several methods' servers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ppfr.methods.common.info import BackboneSpec
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import Backbone, build_backbone
from ppfr.networks.mobilefacenet import CLIENT_BLOCKS, MobileFaceNet
from ppfr.transforms.quantise import from_levels
from ppfr.util.errors import MethodError

Client = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
# images that calibrate the scale of a server's channels
_SCALE_SAMPLE = 144
# of their payloads so much at once: 192 channels of 144 images are 1.4 GB, several times over where a client draws
_PART_BYTES = 128 << 20


class InputScale(nn.Module):
    """Divides each channel by its root mean square on a training sample: DCT channels differ by factors of 1e5."""

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale[:, None, None]

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Set the scale from a sample (N,C,H,W)."""
        self.calibrate_in_parts([features])

    @torch.no_grad()
    def calibrate_in_parts(self, parts: Iterable[Tensor]) -> None:
        """Set the scale from a sample that comes in parts (n,C,H,W), so that it need not be in memory at once."""
        count, energy = 0, torch.zeros_like(self.scale, dtype=torch.float64)
        for features in parts:
            count += features.numel() // features.shape[1]
            energy += torch.linalg.vector_norm(features.float(), dim=(0, 2, 3)).double().square()
        self.scale.copy_(1.0 / (energy / count).sqrt().clamp_min(1e-8))


def split_for_memory(images: Tensor, channels: int) -> Sequence[Tensor]:
    """Images (N,3,H,W) in parts, so that `channels` float32 maps of the images' size take 128 MB a part at most."""
    return torch.split(images, max(1, _PART_BYTES // (4 * channels * images[0, 0].numel())))


def client_trunk(
    method: str, name: str, server: BackboneSpec, in_channels: int, generator: torch.Generator
) -> MobileFaceNet:
    """A client's own network, as wide as the server's, whose `CLIENT_BLOCKS` give maps.

    Raises MethodError for a `name` that is no MobileFaceNet.
    """
    network = build_backbone(
        name,
        in_channels=in_channels,
        embedding_size=server.embedding_size,
        width=server.width,
        generator=generator,
    )
    if not isinstance(network, MobileFaceNet):
        raise MethodError(
            f"{method}: client_backbone is {name!r}; expected a MobileFaceNet, whose blocks {CLIENT_BLOCKS} give the "
            "maps"
        )
    return network


class ChannelServer(nn.Module):
    """The plainest server: one payload tensor, scaled per channel, through a recogniser."""

    def __init__(self, backbone: Backbone, tensor: str = "channels", *, scaled: bool = True) -> None:
        super().__init__()
        self.tensor = tensor
        self.scale = InputScale(backbone.in_channels) if scaled else None
        self.backbone = backbone

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the backbone's first layer sees."""
        features = tensors[self.tensor]
        return features if self.scale is None else self.scale(features)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        embedding: Tensor = self.backbone(self.trunk_input(tensors))
        return embedding


class LevelsServer(ChannelServer):
    """A recogniser behind a payload of 8-bit images, `image`, which it sees in [-1,1]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, "image", scaled=False)

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return from_levels(tensors[self.tensor])


def clear_stage(trunk: Backbone) -> Stage:
    """The stage `recogniser`: an unprotected recogniser learns on clear images, for a client to be trained against."""
    return Stage(
        name="recogniser",
        module=trunk,
        forward=lambda images, labels, generator: TrainingStep(trunk(images)),
        embedding_size=trunk.embedding_size,
        trunk=trunk,
        trunk_input=lambda images, generator: TrunkInput(images),
    )


def server_stage(
    server: ChannelServer,
    client: Client,
    *,
    module: nn.Module | None = None,
    calibrate: Callable[[Tensor, torch.Generator], None] | None = None,
    sample: int = 0,
    rate_scales: Mapping[str, float] | None = None,
) -> Stage:
    """The stage `server`: a recogniser learns on what `client(images, generator)` sends.

    `module` is what learns if it is more than the server; `calibrate` runs before the server's channels are scaled, on
    at least `sample` images.
    """

    def measure(images: Tensor, generator: torch.Generator) -> None:
        if calibrate is not None:
            calibrate(images, generator)
        if server.scale is not None:
            parts = split_for_memory(images[:_SCALE_SAMPLE], server.backbone.in_channels)
            server.scale.calibrate_in_parts(client(part, generator)[server.tensor] for part in parts)

    return Stage(
        name="server",
        module=server if module is None else module,
        forward=lambda images, labels, generator: TrainingStep(server(client(images, generator))),
        embedding_size=server.backbone.embedding_size,
        trunk=server.backbone,
        trunk_input=lambda images, generator: TrunkInput(server.trunk_input(client(images, generator))),
        calibrate=measure,
        rate_scales=rate_scales or {},
        sample=sample,
    )
