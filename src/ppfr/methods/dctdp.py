"""DCTDP: frequency channels with learned Laplace noise travel (Ji et al., ECCV 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import Draw, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import ChannelServer, server_stage
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage
from ppfr.transforms import block_dct
from ppfr.transforms.noise import laplace

# every frequency but DC, section 3.2
FREQUENCIES = tuple(range(1, 64))
CHANNELS = 3 * len(FREQUENCIES)
# images whose range is measured at a time: 189 channels of each take 9 MB
_CHUNK = 16


class DCTDPOptions(MethodOptions):
    """Settings of DCTDP."""

    epsilon: float = Field(
        4.0, gt=0, description="mean privacy budget of a coefficient, smaller is more private; `inf` for no noise"
    )
    sensitivity: Literal["measured", "reference"] = Field(
        "measured", description="measured: each coefficient's range on training images; reference: 1, as in the code"
    )
    images: int = Field(768, ge=2, description="training images on which the ranges are measured")
    noise_rate: float = Field(
        50.0, gt=0, description="learning rate of the budgets over the recogniser's; 0.1 in the paper"
    )


class LaplaceNoise(nn.Module):
    """Laplace noise of learned location whose scale follows from a learned split of a fixed privacy budget.

    Element i of n gets epsilon_i = softmax(rho)_i * n * `epsilon` and noise of scale sensitivity_i / epsilon_i around
    location_i * sensitivity_i. `rho` and `location` start at 0, so that every element gets `epsilon`. `sensitivity` is
    a buffer of the same shape.
    """

    sensitivity: Tensor

    def __init__(self, shape: tuple[int, ...], epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.rho = nn.Parameter(torch.zeros(shape))
        self.location = nn.Parameter(torch.zeros(shape))
        self.register_buffer("sensitivity", torch.ones(shape))

    def scales(self) -> Tensor:
        """Scale of each element's noise."""
        shares = torch.softmax(self.rho.flatten(), 0).view_as(self.rho)
        return self.sensitivity / (shares * (self.epsilon * self.rho.numel()))

    def forward(self, values: Tensor, unit: Tensor) -> Tensor:
        """Values (B, ...) with noise made of `unit`, Laplace draws of scale 1; none if epsilon is infinite."""
        if math.isinf(self.epsilon):
            return values
        return torch.addcmul(torch.addcmul(values, self.sensitivity, self.location), self.scales(), unit)


@register
class DCTDP(Method):
    """All block-DCT channels but DC, with Laplace noise of learned strength (Ji et al., ECCV 2022, section 3).

    The recogniser and the noise (locations, and how a fixed budget is split over the 189*H*W coefficients) learn
    together from the recognition loss. Sensitivities are ranges measured on training images.
    """

    info = MethodInfo(
        name="dctdp",
        title="DCTDP",
        paper=(
            "Ji et al., Privacy-Preserving Face Recognition with Learnable Privacy Budgets in Frequency Domain, "
            "ECCV 2022"
        ),
        departures=(
            "sensitivities are measured as in the paper (the reference's code sets all to 1: "
            "options.sensitivity=reference); every image has a noise draw of its own (the code: one for a batch); "
            "noise and network share an optimizer, with a rate of its own for the budgets; locations are counted in "
            "sensitivities and learn at the network's rate; channels are divided by their root mean square before the "
            "first layer"
        ),
    )
    Options = DCTDPOptions
    options: DCTDPOptions
    client: LaplaceNoise
    server: ChannelServer

    def __init__(self, options: DCTDPOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = LaplaceNoise((CHANNELS, *self.input_size), options.epsilon)
        self.server = ChannelServer(backbone.build(CHANNELS, generator))

    @property
    def schema(self) -> PayloadSchema:
        shape = (CHANNELS, *self.input_size)
        return PayloadSchema(self.info.name, {"channels": TensorSpec(shape, "noisy frequencies 1..63, colour-major")})

    def remarks(self) -> list[str]:
        """States the privacy budget and its limits."""
        epsilon = self.options.epsilon
        if math.isinf(epsilon):
            return ["epsilon is infinite: no noise, no privacy", *super().remarks()]
        total = epsilon * self.client.rho.numel()
        ranges = "1 (reference mode)" if self.options.sensitivity == "reference" else "ranges seen on training images"
        return [
            f"mean epsilon {epsilon:g} a coefficient, {total:.3g} in sum for an image: the guarantee is for single "
            f"coefficients, not for the image; sensitivities are {ranges}, which other images may exceed",
            *super().remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        channels = noiseless(images)
        if math.isinf(self.options.epsilon):
            return {"channels": channels}
        return {"channels": self.client(channels, laplace(channels.shape, generator))}

    def protect_graph(self) -> ProtectGraph:
        """One draw, the noise."""
        if math.isinf(self.options.epsilon):
            return ProtectGraph(lambda images: {"channels": noiseless(images)})

        def apply(images: Tensor, noise: Tensor) -> dict[str, Tensor]:
            return {"channels": self.client(noiseless(images), noise)}

        return ProtectGraph(apply, draws=(Draw("noise", "laplace", (1, CHANNELS, *self.input_size)),))

    def hypotheses(self) -> list[Hypothesis]:
        """None: noise is one of too many draws to list; without noise, one."""
        return super().hypotheses() if math.isinf(self.options.epsilon) else []

    def weakened(self) -> Hypothesis:
        """The same client without noise."""
        return Hypothesis("no noise", lambda images: {"channels": noiseless(images)})

    def stages(self) -> list[Stage]:
        def calibrate(images: Tensor, generator: torch.Generator) -> None:
            if self.options.sensitivity == "measured":
                self.client.sensitivity.copy_(ranges(images[: self.options.images]))

        return [
            server_stage(
                self.server,
                self._protect,
                module=nn.ModuleDict({"server": self.server, "noise": self.client}),
                calibrate=calibrate,
                sample=self.options.images,
                rate_scales={"noise.rho": self.options.noise_rate},
            )
        ]


def noiseless(images: Tensor) -> Tensor:
    """Channels (B,189,H,W) of images (B,3,H,W) in [-1,1]: 63 frequencies of each colour."""
    return block_dct(images, FREQUENCIES).float().flatten(1, 2)


@torch.no_grad()
def ranges(images: Tensor) -> Tensor:
    """Largest minus smallest value of each coefficient (189,H,W) over images (N,3,H,W) in [-1,1]."""
    low = high = noiseless(images[:1])[0]
    for part in torch.split(images, _CHUNK):
        channels = noiseless(part)
        low, high = torch.minimum(low, channels.amin(0)), torch.maximum(high, channels.amax(0))
    return high - low
