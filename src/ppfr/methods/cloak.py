"""Cloak: noise where recognition does not need the pixels, constants where it needs them least (WWW 2021)."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ppfr.distributed.global_batch import randn
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import Draw, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import ChannelServer, clear_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep

# initial value of rho, at which the frozen recogniser still recognises: (1 + tanh(-2)) / 2 is 0.018
_FIRST_RHO = -2.0


class CloakOptions(MethodOptions):
    """Settings of Cloak."""

    trade_off: float = Field(
        0.5, ge=0, description="weight of the noise's size against recognition; larger is more private"
    )
    suppressed: float = Field(
        0.5, ge=0, le=1, description="share of the values, those with the most noise, that become constants"
    )
    min_scale: float = Field(0.01, ge=0, description="smallest deviation of a value's noise; images are in [-1,1]")
    max_scale: float = Field(1.5, gt=0, description="largest deviation of a value's noise")

    @model_validator(mode="after")
    def _ordered(self) -> CloakOptions:
        if self.min_scale >= self.max_scale:
            raise ValueError(f"min_scale {self.min_scale:g} is not below max_scale {self.max_scale:g}")
        return self


class PixelNoise(nn.Module):
    """Gaussian noise with a learned location and deviation for each value of an image (3,H,W)."""

    def __init__(self, shape: tuple[int, ...], low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.location = nn.Parameter(torch.zeros(shape))
        self.rho = nn.Parameter(torch.full(shape, _FIRST_RHO))

    def scales(self) -> Tensor:
        """The deviations, between the lowest and the highest allowed."""
        return (1 + torch.tanh(self.rho)) / 2 * (self.high - self.low) + self.low

    def forward(self, images: Tensor, unit: Tensor) -> Tensor:
        """Images (B,3,H,W) with noise made of `unit`, standard normal draws of that shape."""
        return torch.addcmul(images + self.location, self.scales(), unit)


class Constants(nn.Module):
    """Replacement of suppressed values: a learned image (3,H,W), initially mid-grey."""

    kept: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(shape))
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.kept, images, self.values)


class CloakClient(nn.Module):
    """The client: noise, then constants."""

    def __init__(self, options: CloakOptions, size: tuple[int, int]) -> None:
        super().__init__()
        self.noise = PixelNoise((3, *size), options.min_scale, options.max_scale)
        self.constants = Constants((3, *size))

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cloaked images (B,3,H,W) of images in [-1,1]."""
        return self.with_noise(images, randn(images.shape, generator, images.device))

    def with_noise(self, images: Tensor, unit: Tensor) -> Tensor:
        """As `forward`, with noise made of `unit`, standard normal draws (B,3,H,W)."""
        cloaked: Tensor = self.constants(self.noise(images, unit))
        return cloaked

    @torch.no_grad()
    def suppress(self, share: float) -> None:
        """Let the `share` of values with the largest deviations be constants."""
        scales = self.noise.scales().flatten()
        count = round(share * len(scales))
        kept = torch.ones_like(scales, dtype=torch.bool)
        kept[scales.argsort(descending=True, stable=True)[:count]] = False
        self.constants.kept.copy_(kept.view_as(self.constants.kept))


@register
class Cloak(Method):
    """Noise of learned location and size for each value, constants for some (Mireshghallah et al., WWW 2021).

    A recogniser on clear images comes first and stays frozen. The noise minimises recognition loss - trade_off *
    log(mean deviation); then the values with the largest deviations are replaced by constants, which are learned in
    turn.
    """

    info = MethodInfo(
        name="cloak",
        title="Cloak",
        paper=(
            "Mireshghallah et al., Not All Features Are Equal: Discovering Essential Features for Preserving "
            "Prediction Privacy, WWW 2021"
        ),
        departures=(
            "the share of suppressed values is given (the paper: a threshold on the deviation); values that stay keep "
            "their noise when images are sent; recognition loss is that of the recipe"
        ),
    )
    Options = CloakOptions
    options: CloakOptions
    client: CloakClient
    server: ChannelServer

    def __init__(self, options: CloakOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = CloakClient(options, self.input_size)
        self.server = ChannelServer(backbone.build(3, generator), "image", scaled=False)

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((3, *self.input_size), "the cloaked image, RGB about [-1,1]")
        return PayloadSchema(self.info.name, {"image": spec})

    def remarks(self) -> list[str]:
        """States the mean scale of the learned noise."""
        kept = self.client.constants.kept
        deviation = float(self.client.noise.scales().detach()[kept].mean()) if bool(kept.any()) else 0.0
        share = 1 - float(kept.float().mean())
        return [
            f"trade-off {self.options.trade_off:g}: {share:.0%} of the values are constants, the others have noise of "
            f"mean deviation {deviation:.2g} (images are in [-1,1])",
            *super().remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": self.client(images.float(), generator)}

    def protect_graph(self) -> ProtectGraph:
        """One draw, the noise."""

        def apply(images: Tensor, noise: Tensor) -> dict[str, Tensor]:
            return {"image": self.client.with_noise(images, noise)}

        return ProtectGraph(apply, draws=(Draw("noise", "normal", (1, 3, *self.input_size)),))

    def hypotheses(self) -> list[Hypothesis]:
        """None: noise is one of too many draws to list."""
        return []

    def weakened(self) -> Hypothesis:
        """No noise and no constants: the image itself."""
        return Hypothesis("no noise, no constants", lambda images: {"image": images.float()})

    def stages(self) -> list[Stage]:
        """The recogniser on clear images; then, with it frozen, the noise; then the constants."""
        client, trunk = self.client, self.server.backbone

        def noise_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            size = -client.noise.scales().mean().log()
            return TrainingStep(trunk(client(images, generator)), {"noise": self.options.trade_off * size})

        def constants_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            return TrainingStep(trunk(client(images, generator)))

        return [
            clear_stage(trunk),
            Stage(
                name="noise",
                module=client.noise,
                forward=noise_forward,
                embedding_size=trunk.embedding_size,
                continues_head=True,
            ),
            Stage(
                name="constants",
                module=client.constants,
                forward=constants_forward,
                embedding_size=trunk.embedding_size,
                calibrate=lambda images, generator: client.suppress(self.options.suppressed),
                continues_head=True,
            ),
        ]
