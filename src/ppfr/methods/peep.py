"""PEEP: noisy eigenface coefficients, turned back to an image, travel (Chamikara et al., Computers & Security 2020)."""

from __future__ import annotations

import math

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
from ppfr.transforms.noise import laplace
from ppfr.util.errors import MethodError

# of the randomised SVD (Halko et al. 2011): further vectors, and power iterations
_OVERSAMPLING, _ITERATIONS = 10, 4


class PEEPOptions(MethodOptions):
    """Settings of PEEP."""

    components: int = Field(128, ge=1, description="eigenfaces")
    epsilon: float = Field(
        8.0, gt=0, description="privacy budget of each coefficient, smaller is more private; `inf` for no noise"
    )
    images: int = Field(2000, ge=2, description="training images on which eigenfaces and ranges are fitted")


class EigenfaceClient(nn.Module):
    """The client: coefficients of an image in a basis of eigenfaces, cut to their ranges, with Laplace noise.

    An unfitted client has a random basis. `basis` (k,3*H*W) has orthonormal rows; `low` and `high` (k,) bound the
    coefficients.
    """

    mean: Tensor
    basis: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, components: int, epsilon: float, size: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.epsilon, self.shape = epsilon, (3, *size)
        length = math.prod(self.shape)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("basis", torch.randn((components, length), generator=generator) / length**0.5)
        self.register_buffer("low", -torch.ones(components))
        self.register_buffer("high", torch.ones(components))

    def coefficients(self, images: Tensor) -> Tensor:
        """Coefficients (B,k) of images (B,3,H,W), cut to the ranges."""
        return torch.clamp((images.flatten(1) - self.mean) @ self.basis.T, self.low, self.high)

    def scales(self) -> Tensor:
        """Scale (k,) of each coefficient's noise: its range over epsilon."""
        return (self.high - self.low) / self.epsilon

    def forward(self, images: Tensor, unit: Tensor | None) -> Tensor:
        """Images (B,3,H,W) rebuilt from coefficients with noise of `unit`, Laplace draws (B,k) of scale 1."""
        # bfloat16 would leave eigenfaces that are not orthogonal
        with torch.autocast(images.device.type, enabled=False):
            coefficients = self.coefficients(images)
            if unit is not None:
                coefficients = torch.addcmul(coefficients, self.scales(), unit)
            return (self.mean + coefficients @ self.basis).view(len(images), *self.shape)

    @torch.no_grad()
    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Find mean, eigenfaces and ranges of images (N,3,H,W); raises MethodError for fewer images than eigenfaces."""
        count, components = len(images), len(self.basis)
        if count < components:
            raise MethodError(
                f"peep: {components} eigenfaces cannot be fitted on {count} images; lower options.components, or raise "
                "options.images"
            )
        faces = images.flatten(1)
        self.mean.copy_(faces.mean(0))
        seed = int(torch.randint(2**62, (), generator=generator))
        # torch's randomised SVD knows only the global generator
        with torch.random.fork_rng(devices=[faces.device] if faces.device.type == "cuda" else []):
            torch.manual_seed(seed)
            size = min(count, components + _OVERSAMPLING)
            _, _, directions = torch.svd_lowrank(faces - self.mean, q=size, niter=_ITERATIONS)
        self.basis.copy_(directions.T[:components])
        found = (faces - self.mean) @ self.basis.T
        self.low.copy_(found.amin(0))
        self.high.copy_(found.amax(0))


@register
class PEEP(Method):
    """Local differential privacy on eigenface coefficients (Chamikara et al., Computers & Security 2020).

    Each coefficient gets Laplace noise of scale range / epsilon; the noisy face is rebuilt and sent, and a recogniser
    learns on such faces. Coefficients are cut to the ranges of the training images, so that the range is a true bound.
    """

    info = MethodInfo(
        name="peep",
        title="PEEP",
        paper=(
            "Chamikara et al., Privacy Preserving Face Recognition Utilizing Differential Privacy, "
            "Computers & Security 2020"
        ),
        departures=(
            "eigenfaces are of RGB images (the paper: grey), coefficients are cut to their ranges, and a convolutional "
            "recogniser on rebuilt images takes the place of the paper's classifier on coefficients"
        ),
    )
    Options = PEEPOptions
    options: PEEPOptions
    client: EigenfaceClient
    server: ChannelServer

    def __init__(self, options: PEEPOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = EigenfaceClient(options.components, options.epsilon, self.input_size, generator)
        self.server = ChannelServer(backbone.build(3, generator), "image")

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((3, *self.input_size), "the noisy face, RGB about [-1,1]")
        return PayloadSchema(self.info.name, {"image": spec})

    def remarks(self) -> list[str]:
        """States the privacy budget."""
        epsilon, count = self.options.epsilon, self.options.components
        budget = (
            "epsilon is infinite: no noise, only the loss of detail"
            if math.isinf(epsilon)
            else f"epsilon {epsilon:g} a coefficient, {epsilon * count:g} in sum for an image of {count} coefficients"
        )
        return [budget, *super().remarks()]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noisy = not math.isinf(self.options.epsilon)
        unit = laplace((len(images), self.options.components), generator) if noisy else None
        return {"image": self.client(images.float(), unit)}

    def protect_graph(self) -> ProtectGraph:
        """One draw, the noise."""

        def apply(images: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
            return {"image": self.client(images, noise)}

        noiseless = math.isinf(self.options.epsilon)
        return ProtectGraph(apply, draws=() if noiseless else (Draw("noise", "laplace", (1, self.options.components)),))

    def hypotheses(self) -> list[Hypothesis]:
        """None: noise is one of too many draws to list; without noise, one."""
        return super().hypotheses() if math.isinf(self.options.epsilon) else []

    def weakened(self) -> Hypothesis:
        """The same client without noise."""
        return Hypothesis("no noise", lambda images: {"image": self.client(images.float(), None)})

    def stages(self) -> list[Stage]:
        def calibrate(images: Tensor, generator: torch.Generator) -> None:
            self.client.fit(images[: max(self.options.images, self.options.components)], generator)

        return [server_stage(self.server, self._protect, calibrate=calibrate, sample=self.options.images)]
