"""CPGAN: a compressed code travels, trained against a network that reconstructs the image (IEEE TIFS 2020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from ppfr.methods.common.graph import ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import ChannelServer
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import Backbone
from ppfr.networks.base import initialised

REDUCTION = 2
_WIDTH = 32
# weight of the newest step in the moving averages of the contest
_PACE = 0.05
# an adversary no better than guessing the mean face, one that reads everything, and codes that are all alike
_LOST, _WON, _FLAT = 0.98, 0.02, 0.02


class CPGANOptions(MethodOptions):
    """Settings of CPGAN."""

    code_channels: int = Field(4, ge=1, le=48, description="channels of the code, at half the image's resolution")
    privacy_weight: float = Field(1.0, ge=0, description="weight of the adversary's error in the privatiser's loss")
    rounds: int = Field(1, ge=1, description="updates of the adversary for each one of privatiser and recogniser")


class Privatiser(nn.Module):
    """The client: three convolutions from an image (B,3,H,W) to a code (B,C,H/2,W/2) of unit deviation.

    `adversary_error` and `code_spread` are moving averages of its training: the adversary's mean squared error over
    that of guessing the batch's mean face, and the share of the code's variance that lies between images; -1 before the
    first step.
    """

    adversary_error: Tensor
    code_spread: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 5, stride=REDUCTION, padding=2, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.PReLU(_WIDTH),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.PReLU(_WIDTH),
            nn.Conv2d(_WIDTH, channels, 1, bias=False),
            # a code that shrinks to nothing would hide the image from both networks
            nn.BatchNorm2d(channels, affine=False),
        )
        self.register_buffer("adversary_error", torch.empty(()))
        self.register_buffer("code_spread", torch.empty(()))

    def forward(self, images: Tensor) -> Tensor:
        code: Tensor = self.layers(images)
        return code

    @torch.no_grad()
    def update_averages(self, error: Tensor, code: Tensor) -> None:
        """Update the moving averages with a training step's values."""
        code = code.float()
        spread = code.var(dim=0).mean() / code.var().clamp_min(1e-12)
        for kept, seen in ((self.adversary_error, error), (self.code_spread, spread)):
            kept.copy_(torch.where(kept < 0, seen, kept + _PACE * (seen - kept)))


class Adversary(nn.Module):
    """Reconstructs images (B,3,H,W) from codes (B,C,H/2,W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 3, padding=1),
            nn.PReLU(_WIDTH),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.PReLU(_WIDTH),
            nn.Conv2d(_WIDTH, 3 * REDUCTION**2, 3, padding=1),
            nn.PixelShuffle(REDUCTION),
        )

    def forward(self, code: Tensor) -> Tensor:
        images: Tensor = self.layers(code)
        return images


class Contest(nn.Module):
    """Alternating training of the adversary against privatiser and recogniser.

    The step counter `turn` is part of the state, so that a resumed run continues with the right player.
    """

    turn: Tensor

    def __init__(self, client: Privatiser, server: CodeServer, adversary: Adversary, options: CPGANOptions) -> None:
        super().__init__()
        self.client, self.server, self.adversary, self.options = client, server, adversary, options
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> TrainingStep:
        """One player's losses with gradients, the other's for the log alone."""
        attacks = int(self.turn) % (self.options.rounds + 1) < self.options.rounds
        self.turn += 1
        with torch.set_grad_enabled(not attacks):
            code = self.client(images)
            embedding = self.server({"code": code})
        if attacks:
            error = relative_error(self.adversary(code), images)
        else:
            weights = {name: weight.detach() for name, weight in self.adversary.named_parameters()}
            error = relative_error(functional_call(self.adversary, weights, (code,)), images)
        # an error above that of the mean face is no gain: without this bound the privatiser would never converge
        privacy = self.options.privacy_weight * (1 - error).clamp_min(0)
        self.client.update_averages(error.detach(), code.detach())
        own, other = (error, privacy.detach()) if attacks else (error.detach(), privacy)
        return TrainingStep(embedding, {"adversary": own, "privacy": other})


class CodeServer(ChannelServer):
    """The server: a recogniser on the code, brought to the image's size."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, "code", scaled=False)

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return F.interpolate(tensors[self.tensor], scale_factor=REDUCTION, mode="nearest")


@register
class CPGAN(Method):
    """A compressing network and its recogniser against a reconstructing adversary (Tseng and Wu, IEEE TIFS 2020).

    Adversary and defenders take turns. The adversary learns to reconstruct the image from the code; privatiser and
    recogniser learn to recognise while the adversary's error is as that of guessing the mean face. Both losses are
    logged in every step, and `remarks` reports when one side has collapsed: the contest is then no evidence.
    """

    info = MethodInfo(
        name="cpgan",
        title="CPGAN",
        paper="Tseng and Wu, Compressive Privacy Generative Adversarial Network, IEEE TIFS 2020",
        departures=(
            "one convolutional adversary (the paper: several kinds together), whose error counts up to that of the "
            "mean face; the code keeps a map's shape, so that a face recogniser can read it"
        ),
    )
    Options = CPGANOptions
    options: CPGANOptions
    client: Privatiser
    server: CodeServer

    def __init__(self, options: CPGANOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        with torch.device("meta"):
            client = Privatiser(options.code_channels)
        self.client = initialised(client, generator)
        self.client.adversary_error.fill_(-1)
        self.client.code_spread.fill_(-1)
        self.server = CodeServer(backbone.build(options.code_channels, generator))

    @property
    def schema(self) -> PayloadSchema:
        height, width = self.input_size
        shape = (self.options.code_channels, height // REDUCTION, width // REDUCTION)
        return PayloadSchema(self.info.name, {"code": TensorSpec(shape, "the compressed code")})

    @property
    def verdict(self) -> str:
        """Outcome of the adversarial training: the adversary's error, or which side has collapsed."""
        error, spread = float(self.client.adversary_error), float(self.client.code_spread)
        if error < 0:
            return "the contest has not begun"
        seen = f"the adversary's error is {error:.2f} of guessing the mean face"
        if spread < _FLAT:
            return f"the privatiser has collapsed: codes of all images are alike (spread {spread:.2g})"
        if error > _LOST:
            return f"the adversary has collapsed or was beaten outright: {seen}; a fresh one must confirm it"
        if error < _WON:
            return f"the privatiser hides nothing: {seen}"
        return f"neither side has collapsed: {seen}"

    def remarks(self) -> list[str]:
        """States the outcome of the adversarial training, and its limits as evidence."""
        return [f"{self.verdict}; another adversary may do better", *super().remarks()]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"code": self.client(images.float()).float()}

    def protect_graph(self) -> ProtectGraph:
        return ProtectGraph(lambda images: {"code": self.client(images).float()})

    def stages(self) -> list[Stage]:
        with torch.device("meta"):
            adversary = Adversary(self.options.code_channels)
        # it only trains the others, so it is no part of what is deployed
        initialised(adversary, torch.Generator().manual_seed(0))
        contest = Contest(self.client, self.server, adversary, self.options)

        def trunk_input(images: Tensor, generator: torch.Generator) -> TrunkInput:
            return TrunkInput(self.server.trunk_input(self._protect(images, generator)))

        return [
            Stage(
                name="contest",
                module=contest,
                forward=lambda images, labels, generator: contest(images),
                embedding_size=self.embedding_size,
                trunk=self.server.backbone,
                trunk_input=trunk_input,
                calibrate=lambda images, generator: settle_norms(self.client.layers, images),
            )
        ]


def relative_error(found: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of reconstructions (B,3,H,W) over that of the batch's mean image (scalar); 0 is perfect."""
    images = images.float()
    return (found.float() - images).square().mean() / images.var(dim=0, correction=0).mean().clamp_min(1e-8)


@torch.no_grad()
def settle_norms(layers: nn.Sequential, images: Tensor) -> None:
    """Set the statistics of a chain's batch norms to those of images (N,3,H,W), layer after layer."""
    features = images
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            variance, mean = torch.var_mean(features, dim=(0, 2, 3))
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        features = layer(features)
