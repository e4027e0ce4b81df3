"""PPFR-FD: frequency channels chosen by analysis, shuffled, mixed and normalised, travel (AAAI 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ppfr.distributed.global_batch import rand
from ppfr.methods.common.graph import ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, secret_option
from ppfr.methods.common.parts import ChannelServer, InputScale, server_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.secrets import require_secrets
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.transforms import block_dct
from ppfr.util.errors import MethodError

CHANNELS = 192
# of the binary concrete distribution (Maddison et al. 2017): how soft a gate's gradient is
_TEMPERATURE = 0.5
_FIRST_LOGIT = 1.0
# images that measure the channels: 192 channels of each take 10 MB
_SAMPLE = 48


class PPFRFDOptions(MethodOptions):
    """Settings of PPFR-FD."""

    channels: int = Field(64, ge=2, le=CHANNELS, description="channels that travel")
    candidates: int = Field(
        108, ge=2, le=CHANNELS, description="channels that are analysed: those with the most energy"
    )
    visibility_weight: float = Field(
        4.0, ge=0, description="weight of what the chosen channels show, against recognition, in the analysis"
    )
    gate_rate: float = Field(50.0, gt=0, description="learning rate of the choice over the recogniser's")
    mask_seed: int = secret_option(0, "seed of the shuffle and of the mixing weights")

    @model_validator(mode="after")
    def _enough(self) -> PPFRFDOptions:
        if self.channels > self.candidates:
            raise ValueError(f"channels {self.channels} are to be chosen from fewer candidates, {self.candidates}")
        return self


class ChannelGates(nn.Module):
    """Learned channel selection: Bernoulli gates per image and channel with straight-through gradients.

    A channel whose gate is 0 is missing entirely: the network cannot compensate for it by larger weights.
    """

    visibility: Tensor
    candidate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((CHANNELS,), _FIRST_LOGIT))
        self.register_buffer("visibility", torch.ones(CHANNELS) / CHANNELS)
        self.register_buffer("candidate", torch.ones(CHANNELS, dtype=torch.bool))

    @torch.no_grad()
    def measure(self, energy: Tensor, candidates: int) -> None:
        """Take the channels' mean squares (192,): the strongest are candidates, and show most."""
        self.candidate.zero_()
        self.candidate[energy.topk(candidates).indices] = True
        amplitude = energy.sqrt()
        self.visibility.copy_(amplitude / amplitude.sum())

    def probabilities(self) -> Tensor:
        """Probability of each channel to be sent (192,); 0 for those that are no candidates."""
        return torch.sigmoid(self.logit) * self.candidate

    def forward(self, count: int, generator: torch.Generator) -> Tensor:
        """Gates (count,192) of 0 and 1, straight-through: gradients are those of the soft draw."""
        uniform = rand((count, CHANNELS), generator, self.logit.device).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((self.logit + uniform.logit()) / _TEMPERATURE)
        hard = (soft > 0.5).to(soft)
        return (hard + (soft - soft.detach())) * self.candidate

    def penalty(self) -> Tensor:
        """Share of the visible amplitude that is expected to travel (scalar)."""
        return (self.probabilities() * self.visibility).sum()

    def choose(self, count: int) -> Tensor:
        """The `count` candidates that are most likely to travel, ascending (count,)."""
        chosen = self.probabilities().detach().topk(count).indices
        return chosen.sort().values


class MaskingClient(nn.Module):
    """The client: takes the chosen channels, shuffles them, mixes neighbours and normalises each one."""

    kept: Tensor
    shown: Tensor

    def __init__(self, options: PPFRFDOptions) -> None:
        super().__init__()
        count = options.channels
        # before the analysis, any
        self.register_buffer("kept", torch.arange(count))
        self.register_buffer("shown", torch.ones(()))
        self.scale = InputScale(count)
        generator = torch.Generator().manual_seed(options.mask_seed)
        self.order: Tensor | None = torch.randperm(count, generator=generator)
        self.weights: Tensor | None = 0.25 + 0.5 * torch.rand(count, generator=generator)

    def select(self, images: Tensor, kept: list[int] | None = None) -> Tensor:
        """The chosen channels (B,n,H,W) of images (B,3,H,W) in [-1,1], ascending; no others are computed.

        `kept` is the choice where the buffer cannot be read, as in a graph's making.
        """
        kept = self.kept.tolist() if kept is None else kept
        frequencies = sorted({channel % 64 for channel in kept})
        place = {frequency: at for at, frequency in enumerate(frequencies)}
        rows = [channel // 64 * len(frequencies) + place[channel % 64] for channel in kept]
        return block_dct(images, frequencies).float().flatten(1, 2)[:, rows]

    def forward(self, images: Tensor) -> Tensor:
        """The payload's channels (B,n,H,W), each of mean 0 and deviation 1 in each image."""
        assert self.order is not None and self.weights is not None
        return self.mask(self.select(images), self.order.to(images.device), self.weights.to(images.device))

    def mask(self, selected: Tensor, order: Tensor, weights: Tensor) -> Tensor:
        """Shuffle, mix and normalise selected channels (B,n,H,W) by an order (n,) and shares (n,)."""
        channels = self.scale(selected).index_select(1, order)
        share = weights[:, None, None]
        mixed = share * channels + (1 - share) * channels.roll(-1, 1)
        deviation, mean = torch.std_mean(mixed, dim=(2, 3), keepdim=True)
        normalised: Tensor = (mixed - mean) / deviation.clamp_min(1e-6)
        return normalised

    @torch.no_grad()
    def calibrate(self, kept: Tensor, images: Tensor) -> None:
        """Take the analysis' choice, and measure its channels on images (N,3,H,W)."""
        self.kept.copy_(kept)
        self.scale.calibrate(self.select(images))


@register
class PPFRFD(Method):
    """Channels that recognition needs and viewers do not, masked without a key's management (Wang et al., AAAI 2022).

    There is no public code; this is our reading of the paper. Of the 192 block-DCT channels those with little energy
    are dropped at once. An analysis stage learns a probability for each of the others to be sent: a recogniser sees
    images with randomly gated channels, and minimises the recognition loss + visibility_weight * the expected
    amplitude that is sent. The `channels` most likely ones are kept. The client shuffles them, mixes each with its
    neighbour, and normalises each to mean 0 and deviation 1. Shuffle and mixing weights are drawn once for a
    deployment; the server never needs them.
    """

    info = MethodInfo(
        name="ppfr-fd",
        title="PPFR-FD",
        paper="Wang et al., Privacy-Preserving Face Recognition in the Frequency Domain, AAAI 2022",
        secrets=("order", "weights"),
        departures=(
            "our reading of a paper without public code: channels are drawn by learned probabilities with straight-"
            "through gradients, visibility is a channel's share of the amplitude, mixing weights lie in 0.25..0.75, "
            "channels are divided by their root mean square before they are mixed"
        ),
    )
    Options = PPFRFDOptions
    options: PPFRFDOptions
    client: MaskingClient
    server: ChannelServer

    def __init__(self, options: PPFRFDOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = MaskingClient(options)
        self.gates = ChannelGates()
        self.server = ChannelServer(backbone.build(options.channels, generator), scaled=False)

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((self.options.channels, *self.input_size), "shuffled, mixed and normalised channels")
        return PayloadSchema(self.info.name, {"channels": spec})

    def remarks(self) -> list[str]:
        """States how much of the images' energy the chosen channels hold."""
        shown = float(self.client.shown)
        return [
            f"{self.options.channels} of {CHANNELS} channels travel, with {shown:.1%} of the images' energy before "
            "normalisation",
            *super().remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        require_secrets(self, [self.client.order, self.client.weights])
        return {"channels": self.client(images)}

    def protect_graph(self) -> ProtectGraph:
        kept: list[int] = self.client.kept.tolist()

        def apply(images: Tensor, order: Tensor, weights: Tensor) -> dict[str, Tensor]:
            return {"channels": self.client.mask(self.client.select(images, kept), order, weights)}

        return ProtectGraph(apply, self.info.secrets)

    def secrets(self) -> dict[str, Tensor]:
        require_secrets(self, [self.client.order, self.client.weights])
        assert self.client.order is not None and self.client.weights is not None
        return {"order": self.client.order, "weights": self.client.weights}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        count = self.options.channels
        if set(secrets) != {"order", "weights"}:
            raise MethodError(f"ppfr-fd needs the secrets ['order', 'weights']; got {sorted(secrets)}")
        order, weights = secrets["order"], secrets["weights"]
        if sorted(order.tolist()) != list(range(count)) or tuple(weights.shape) != (count,):
            raise MethodError(f"'order' must permute 0..{count - 1} and 'weights' have {count} values")
        self.client.order, self.client.weights = order.long(), weights.float()

    def drop_secrets(self) -> None:
        self.client.order = self.client.weights = None

    def stages(self) -> list[Stage]:
        """The analysis, with a recogniser that is thrown away; then the server on what the client sends."""
        client, options, gates = self.client, self.options, self.gates
        helper = ChannelServer(self.backbone_spec.build(CHANNELS, torch.Generator().manual_seed(0)))

        def drawn(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            gate = gates(len(images), generator)[:, :, None, None]
            return {"channels": all_channels(images) * gate}

        def analysis_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            losses = {"visibility": options.visibility_weight * gates.penalty()}
            return TrainingStep(helper(drawn(images, generator)), losses)

        def analysis_calibrate(images: Tensor, generator: torch.Generator) -> None:
            channels = all_channels(images[:_SAMPLE])
            gates.measure(channels.square().mean(dim=(0, 2, 3)), options.candidates)
            assert helper.scale is not None
            helper.scale.calibrate(channels)

        def server_calibrate(images: Tensor, generator: torch.Generator) -> None:
            sample = images[:_SAMPLE]
            client.calibrate(gates.choose(options.channels), sample)
            energy = all_channels(sample).square().mean(dim=(0, 2, 3))
            client.shown.copy_(energy[client.kept].sum() / energy.sum())

        return [
            Stage(
                name="analysis",
                module=nn.ModuleDict({"gates": gates, "recogniser": helper}),
                forward=analysis_forward,
                embedding_size=helper.backbone.embedding_size,
                trunk=helper.backbone,
                trunk_input=lambda images, generator: TrunkInput(helper.trunk_input(drawn(images, generator))),
                calibrate=analysis_calibrate,
                rate_scales={"gates": options.gate_rate},
            ),
            server_stage(self.server, self._protect, calibrate=server_calibrate),
        ]


def all_channels(images: Tensor) -> Tensor:
    """All block-DCT channels (B,192,H,W) of images (B,3,H,W) in [-1,1], colour-major."""
    return block_dct(images).float().flatten(1, 2)
