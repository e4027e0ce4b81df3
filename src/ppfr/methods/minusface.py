"""MinusFace: the shuffled residue of a generator's reconstruction travels (Mi et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from ppfr.distributed.global_batch import batch_mean
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import Draw, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.parts import InputScale
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import Backbone
from ppfr.networks.unet import LAST, UNet, build_unet
from ppfr.transforms import block_dct, inverse_block_dct
from ppfr.transforms.shuffle import draw_permutations, permute_channels

CHANNELS = 192
DC = (0, 64, 128)
# the U-Net's convolutions at full resolution after its first one
_ROUTE = ("left_conv_1.conv_ReLU.2", "right_conv_4.conv_ReLU.0", "right_conv_4.conv_ReLU.2")
# images that calibrate the generator: 192 channels of each take 10 MB
_SAMPLE = 24
# images whose residues are made together without gradients: what fits into a processor's cache is fastest
_CHUNK = 2
# the target activation of a latent unit in the sparsity term
_SPARSE = 0.05


class MinusFaceOptions(MethodOptions):
    """Settings of MinusFace."""

    duplicates: int = Field(1, ge=1, le=16, description="shuffles of one residue that travel together (N of the paper)")
    generator_width: float = Field(
        1.0, ge=0.125, description="width of the U-Net; 1 is the paper's 64 to 1024 channels"
    )
    reconstruction_weight: float = Field(5.0, ge=0, description="weight of the generator's L1 loss in stage 1")
    sparsity_weight: float = Field(
        0.0, ge=0, description="weight of the latent's KL sparsity in stage 1; 1e-3 when used"
    )


class ResidueClient(nn.Module):
    """The client: the residue of all 192 block-DCT channels after the generator's reconstruction."""

    def __init__(self, width: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = InputScale(CHANNELS)
        self.generator = build_unet(in_channels=CHANNELS, out_channels=CHANNELS, width=width, generator=generator)
        copy_brightness(self.generator)

    def forward(self, images: Tensor) -> Tensor:
        """Residue R (B,192,H,W) of images (B,3,H,W) in [-1,1]."""
        coefficients = all_channels(images)
        return coefficients - self.generate(coefficients)

    @torch.no_grad()
    def scaled_residues(self, images: Tensor, scale: InputScale) -> Tensor:
        """`scale(self(images))` without gradients, a few images at a time: 192 channels of an image are 10 MB."""
        residues = images.new_empty(len(images), CHANNELS, *images.shape[2:], dtype=torch.float32)
        for faces, out in zip(torch.split(images, _CHUNK), torch.split(residues, _CHUNK), strict=True):
            out.copy_(scale(self(faces)))
        return residues

    def generate(self, coefficients: Tensor) -> Tensor:
        """The generator's reconstruction of coefficients (B,192,H,W), of the same shape."""
        # the residue is a small difference of large numbers: bfloat16 would drown it
        with torch.autocast(coefficients.device.type, enabled=False):
            made: Tensor = functional_call(self.generator, self._folded(), (coefficients,))
        return made.contiguous()

    def latent(self, coefficients: Tensor) -> Tensor:
        """The generator's coarsest features of coefficients (B,192,H,W)."""
        return self.generator.encode(self.scale(coefficients))[-1]

    def _folded(self) -> dict[str, Tensor]:
        """The U-Net's outer weights with the scaling of the channels in them: a pass over 192 channels costs time."""
        first, last = self.generator.first_layer, self.generator.last_layer
        back = 1.0 / self.scale.scale
        assert last.bias is not None
        return {
            "left_conv_1.conv_ReLU.0.weight": first.weight * self.scale.scale[:, None, None],
            f"{LAST}.weight": last.weight * back[:, None, None, None],
            f"{LAST}.bias": last.bias * back,
        }

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the channels' scale from a sample (N,3,H,W) in [-1,1]."""
        self.scale.calibrate(all_channels(images))


@torch.no_grad()
def copy_brightness(generator: UNet) -> None:
    """Initialise a U-Net so that it copies its three DC channels, the blurred image, and outputs zero elsewhere.

    Each channel passes as its positive and its negative part, for ReLU keeps only one. Stage 1 then starts with almost
    no reconstruction error, and training goes into what it is for: which details the residue keeps.
    """
    layers = [generator.first_layer, *(generator.get_submodule(name) for name in _ROUTE)]
    for lane, (channel, sign) in enumerate((channel, sign) for channel in DC for sign in (1.0, -1.0)):
        for depth, layer in enumerate(layers):
            assert isinstance(layer, nn.Conv2d)
            layer.weight[lane] = 0.0
            layer.weight[lane, lane if depth else channel, 1, 1] = 1.0 if depth else sign
    last = generator.last_layer
    last.weight.zero_()
    for lane, channel in enumerate(DC):
        last.weight[channel, 2 * lane] = 1.0
        last.weight[channel, 2 * lane + 1] = -1.0


@register
class MinusFace(Method):
    """The image decoded from a shuffled high-dimensional residue travels (Mi et al., CVPR 2024).

    Stage `generator` trains the U-Net and, to keep identity in the residue, a recogniser on it that is thrown away;
    stage `recogniser` trains the server on decoded shuffled residues of the frozen generator.
    """

    info = MethodInfo(
        name="minusface",
        title="MinusFace",
        paper="Mi et al., Privacy-Preserving Face Recognition Using Trainable Feature Subtraction, CVPR 2024",
        departures=(
            "the generator's tenfold smaller learning rate is applied (dead code in the reference); channels are "
            "divided by their root mean square before the U-Net and multiplied again behind it; the U-Net begins as a "
            "copy of the DC channels"
        ),
    )
    Options = MinusFaceOptions
    options: MinusFaceOptions
    client: ResidueClient
    server: ImageServer

    def __init__(self, options: MinusFaceOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.client = ResidueClient(options.generator_width, generator)
        self.server = ImageServer(backbone.build(3 * options.duplicates, generator))

    @property
    def schema(self) -> PayloadSchema:
        shape = (3 * self.options.duplicates, *self.input_size)
        return PayloadSchema(self.info.name, {"images": TensorSpec(shape, "decoded shuffled residues, RGB in [0,1]")})

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        count = self.options.duplicates
        orders = draw_permutations(len(images) * count, CHANNELS, generator, images.device)
        size = len(images) if torch.is_grad_enabled() else _CHUNK
        parts = zip(torch.split(images, size), torch.split(orders, size * count), strict=True)
        return {"images": torch.cat([decode_shuffled(self.client(faces), order) for faces, order in parts])}

    def protect_graph(self) -> ProtectGraph:
        """One draw, the shuffles."""

        def apply(images: Tensor, orders: Tensor) -> dict[str, Tensor]:
            return {"images": decode_shuffled(self.client(images), orders)}

        return ProtectGraph(apply, draws=(Draw("orders", "permutation", (self.options.duplicates, CHANNELS)),))

    def hypotheses(self) -> list[Hypothesis]:
        """None: every query draws one of 192! permutations."""
        return []

    def weakened(self) -> Hypothesis:
        """Channels stay in their places: the residue itself, decoded."""

        def apply(images: Tensor) -> dict[str, Tensor]:
            orders = torch.arange(CHANNELS, device=images.device).expand(len(images) * self.options.duplicates, -1)
            return {"images": decode_shuffled(self.client(images), orders)}

        return Hypothesis("channels in their places", apply)

    def stages(self) -> list[Stage]:
        client, server, options = self.client, self.server, self.options
        # the recogniser of stage 1 only steers the generator, so it is no part of what is deployed
        helper = ResidueRecogniser(self.backbone_spec.build(CHANNELS, torch.Generator().manual_seed(0)))

        def generator_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            coefficients = all_channels(images)
            made = client.generate(coefficients)
            losses = {
                "reconstruction": options.reconstruction_weight * (images - (inverse(made) * 2 - 1)).abs().mean(),
            }
            if options.sparsity_weight:
                losses["sparsity"] = options.sparsity_weight * sparsity(client.latent(coefficients), generator)
            return TrainingStep(helper(coefficients - made), losses)

        def recogniser_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            with torch.no_grad():
                tensors = self._protect(images, generator)
            return TrainingStep(server(tensors))

        def recogniser_input(images: Tensor, generator: torch.Generator) -> TrunkInput:
            return TrunkInput(server.trunk_input(self._protect(images, generator)))

        def calibrate_generator(images: Tensor, generator: torch.Generator) -> None:
            sample = images[:_SAMPLE]
            client.calibrate(sample)
            helper.scale.calibrate_in_parts(map(client, torch.split(sample, _CHUNK)))

        return [
            Stage(
                name="generator",
                module=nn.ModuleDict({"generator": client.generator, "recogniser": helper}),
                forward=generator_forward,
                embedding_size=helper.backbone.embedding_size,
                trunk=helper.backbone,
                trunk_input=lambda images, generator: TrunkInput(client.scaled_residues(images, helper.scale)),
                calibrate=calibrate_generator,
                rate_scales={"generator": 0.1},
            ),
            Stage(
                name="recogniser",
                module=server,
                forward=recogniser_forward,
                embedding_size=server.backbone.embedding_size,
                trunk=server.backbone,
                trunk_input=recogniser_input,
                calibrate=lambda images, generator: server.scale.calibrate(centred(self._protect(images, generator))),
            ),
        ]


class ImageServer(nn.Module):
    """The server: a recogniser on the decoded images, brought to [-1,1] and scaled per channel."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale = InputScale(backbone.in_channels)
        self.backbone = backbone

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Input of the backbone's first layer."""
        scaled: Tensor = self.scale(centred(tensors))
        return scaled

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        embedding: Tensor = self.backbone(self.trunk_input(tensors))
        return embedding


class ResidueRecogniser(nn.Module):
    """The recogniser that stage 1 trains beside the generator."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.scale = InputScale(CHANNELS)
        self.backbone = backbone

    def forward(self, residue: Tensor) -> Tensor:
        embedding: Tensor = self.backbone(self.scale(residue))
        return embedding


def all_channels(images: Tensor) -> Tensor:
    """All block-DCT channels (B,192,H,W) of images (B,3,H,W) in [-1,1], colour-major."""
    return block_dct(images).float().flatten(1, 2)


def centred(tensors: Mapping[str, Tensor]) -> Tensor:
    """The payload's images in [-1,1], the range that stage 1 works in."""
    return tensors["images"] * 2 - 1


def inverse(coefficients: Tensor) -> Tensor:
    """The images (B,3,H,W) in [0,1] of coefficients (B,192,H,W)."""
    return inverse_block_dct(coefficients.view(len(coefficients), 3, -1, *coefficients.shape[2:]))


def decode_shuffled(residue: Tensor, permutations: Tensor) -> Tensor:
    """Images (B,3N,H,W) in [0,1] decoded from N shuffles of each residue (B,192,H,W), permutations (B*N,192).

    Colours are shuffled with each other (section 3.4).
    """
    orders = permutations.view(len(residue), -1, CHANNELS).unbind(1)
    return torch.cat([inverse(permute_channels(residue, order)) for order in orders], 1)


def sparsity(latent: Tensor, generator: torch.Generator) -> Tensor:
    """KL divergence of the latent units' mean activations from 0.05, as in sparse autoencoders (scalar)."""
    active = batch_mean(torch.sigmoid(latent).mean(dim=(0, 2, 3)), generator).clamp(1e-6, 1 - 1e-6)
    wanted = torch.full_like(active, _SPARSE)
    return (wanted * (wanted / active).log() + (1 - wanted) * ((1 - wanted) / (1 - active)).log()).sum()
