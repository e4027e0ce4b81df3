"""PRO-Face C: a blurred image travels, with feature maps of the residual that the blur removed (IEEE TIFS 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.distributed.global_batch import batch_mean
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option, secret_option
from ppfr.methods.common.parts import clear_stage, client_trunk
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.secrets import require_secrets
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks import Backbone
from ppfr.networks.mobilefacenet import CLIENT_BLOCKS, MobileFaceNet
from ppfr.transforms.blur import EVALUATION, TRAINING, BlurRange, obfuscate
from ppfr.transforms.quantise import dequantise, from_levels, prune, quantise, straight_through, to_levels
from ppfr.transforms.shuffle import draw_permutations, shuffle_blocks
from ppfr.util.errors import MethodError

MAPS = ("map0", "map1", "map2", "map3")
BITS = (8, 6, 4, 2)
PRUNING = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)


class ProFaceCOptions(MethodOptions):
    """Settings of PRO-Face C."""

    obfuscation: Literal["hybrid", "gaussian", "median", "pixelate"] = Field(
        "hybrid", description="what hides the face; hybrid patches the other three together"
    )
    client_backbone: str | None = Field(
        None,
        description="the client's MobileFaceNet; by default the server's network if it is one, else "
        "mobilefacenet-client",
    )
    blocks: int = Field(
        2, ge=1, description="the first map is cut into blocks x blocks, each with a channel shuffle of its own"
    )
    shuffle_seed: int = secret_option(0, "seed of the channel shuffle, which it determines")
    bits: Literal[8, 6, 4, 2] = payload_option(BITS, "bits of a map's values")
    pruning: float = payload_option(
        PRUNING,
        "share of each map's values, the smallest, that is set to zero; 1 sends empty maps",
        ge=0,
        le=1,
    )
    simulate: Literal["none", "settings", "any"] = Field(
        "none",
        description="maps in training: as they are, at `bits` and `pruning`, or at bits and pruning (to 0.95) drawn "
        "anew for each batch",
    )
    similarity_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the squared distance to the clear image's embedding, relative to that one's square",
    )


class ResidualClient(nn.Module):
    """The client: a MobileFaceNet on the residual of the blur; its features become a map for each server stage."""

    permutations: Tensor | None

    def __init__(self, backbone: MobileFaceNet, shapes: tuple[tuple[int, int, int], ...], permutations: Tensor) -> None:
        super().__init__()
        # only the blocks are read: what a recogniser puts behind them need not be shipped
        backbone.output_layer = nn.Identity()  # type: ignore[assignment]
        self.backbone = backbone
        self.sizes = [(height, width) for _, height, width in shapes]
        features = backbone.block_shapes()
        self.interfaces = nn.ModuleList(
            [_silent(features[block][0], shape[0]) for block, shape in zip(CLIENT_BLOCKS, shapes, strict=True)]
        )
        # a secret: kept out of the state dict, which the server's file is made of
        self.register_buffer("permutations", permutations, persistent=False)

    def forward(self, residual: Tensor) -> list[Tensor]:
        """A map (B,C,h,w) for each server stage from images minus blurred images (B,3,H,W), the first one shuffled."""
        assert self.permutations is not None
        found = self.backbone.block_features(residual, CLIENT_BLOCKS)
        maps = [
            _resized(interface(features), size)
            for interface, features, size in zip(self.interfaces, found, self.sizes, strict=True)
        ]
        return [shuffle_blocks(maps[0], self.permutations), *maps[1:]]


def _silent(channels: int, out: int) -> nn.Conv2d:
    """A 1x1 convolution with zero weights, so that the server is initially the unchanged recogniser."""
    with torch.device("meta"):
        interface = nn.Conv2d(channels, out, 1)
    interface.to_empty(device="cpu")
    for parameter in interface.parameters():
        nn.init.zeros_(parameter)
    return interface


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; behind the 1x1 convolution, with which it commutes, where there are fewer pixels."""
    if tuple(features.shape[2:]) == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class CompensatedServer(nn.Module):
    """The server: a frozen recogniser on the blurred image, F <- F + sigmoid(F) * A * K after each of its stages.

    A is the client's map and K a learned weight of the same shape that never leaves the server.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in backbone.stage_shapes()])

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        steps = tensors["steps"]
        maps = [dequantise(tensors[name], steps[:, index]) for index, name in enumerate(MAPS)]
        return self.compensate(from_levels(tensors["image"]), maps)

    def compensate(self, blurred: Tensor, maps: list[Tensor]) -> Tensor:
        """Embeddings (B,D) of blurred images (B,3,H,W) in [-1,1] and four maps."""

        def fuse(stage: int, features: Tensor) -> Tensor:
            return torch.addcmul(features, torch.sigmoid(features), (maps[stage] * self.gains[stage]).to(features))

        embedding: Tensor = self.backbone(blurred, after_stage=fuse)
        return embedding


@register
class ProFaceC(Method):
    """A blurred image and four quantised feature maps travel to an unchanged recogniser (PRO-Face C, IEEE TIFS 2024).

    The blurred image is what people see; a machine sees more, since blur can partly be undone and the maps carry what
    identifies. An attacker who knows the weights reads the maps as the server does.
    """

    info = MethodInfo(
        name="proface-c",
        title="PRO-Face C",
        paper="PRO-Face C: Privacy-preserving Recognition of Obfuscated Face via Feature Compensation, IEEE TIFS 2024",
        secrets=("permutations",),
        departures=(
            "pixelated blocks show their mean (the reference picks a pixel) and hybrid tiles are cut without resizing; "
            "the maps start at zero; the embedding loss is relative to the clear embedding's square"
        ),
    )
    Options = ProFaceCOptions
    options: ProFaceCOptions
    client: ResidualClient
    server: CompensatedServer

    def __init__(self, options: ProFaceCOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        trunk = backbone.build(3, generator)
        own = backbone.name if isinstance(trunk, MobileFaceNet) else "mobilefacenet-client"
        network = client_trunk("proface-c", options.client_backbone or own, backbone, 3, generator)
        shapes = trunk.stage_shapes()
        channels, height, width = shapes[0]
        if height % options.blocks or width % options.blocks:
            raise MethodError(
                f"proface-c: blocks is {options.blocks}, but the first map of {height}x{width} does not divide into "
                f"{options.blocks}x{options.blocks} equal blocks"
            )
        key = torch.Generator().manual_seed(options.shuffle_seed)
        self.client = ResidualClient(network, shapes, draw_permutations(options.blocks**2, channels, key))
        self.server = CompensatedServer(trunk)

    @property
    def schema(self) -> PayloadSchema:
        tensors = {"image": TensorSpec((3, *self.input_size), "the blurred image, RGB", torch.uint8)}
        for name, shape in zip(MAPS, self.server.backbone.stage_shapes(), strict=True):
            tensors[name] = TensorSpec(shape, "feature map in steps", torch.int8)
        tensors["steps"] = TensorSpec((len(MAPS),), "the steps of the maps")
        return PayloadSchema(self.info.name, tensors)

    # --- client -------------------------------------------------------------------------------------------------
    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        blurred, maps = self._compute(images, generator, EVALUATION)
        sent = [quantise(prune(values.float(), self.options.pruning), self.options.bits) for values in maps]
        return {
            "image": to_levels(blurred).byte(),
            **{name: levels for name, (levels, _) in zip(MAPS, sent, strict=True)},
            "steps": torch.stack([steps for _, steps in sent], dim=1),
        }

    def _compute(self, images: Tensor, generator: torch.Generator, strength: BlurRange) -> tuple[Tensor, list[Tensor]]:
        """Blurred images in [-1,1] and their maps, before anything is rounded."""
        require_secrets(self, [self.client.permutations])
        images = images.float()
        blurred = obfuscate(images, self.options.obfuscation, generator, strength)
        return blurred, self.client(images - blurred)

    def hypotheses(self) -> list[Hypothesis]:
        """One, with values before rounding; none for hybrid blur, whose tiles fall in too many orders."""
        if self.options.obfuscation == "hybrid":
            return []

        def apply(images: Tensor) -> dict[str, Tensor]:
            blurred, maps = self._compute(images, torch.Generator(images.device), EVALUATION)
            sent = [prune(values.float(), self.options.pruning) for values in maps]
            steps = [quantise(values, self.options.bits)[1].clamp_min(1e-30) for values in sent]
            return {
                "image": to_levels(blurred, whole=False),
                **{
                    name: values / step[:, None, None, None]
                    for name, values, step in zip(MAPS, sent, steps, strict=True)
                },
                "steps": torch.stack(steps, dim=1),
            }

        return [Hypothesis("client", apply)]

    def secrets(self) -> dict[str, Tensor]:
        require_secrets(self, [self.client.permutations])
        assert self.client.permutations is not None
        return {"permutations": self.client.permutations}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        expected = (self.options.blocks**2, self.server.backbone.stage_shapes()[0][0])
        found = secrets.get("permutations")
        if set(secrets) != {"permutations"} or found is None or tuple(found.shape) != expected:
            shapes = {name: tuple(tensor.shape) for name, tensor in secrets.items()}
            raise MethodError(f"proface-c needs the secrets {{'permutations': {expected}}}; got {shapes}")
        if not torch.equal(
            found.long().sort(1).values, torch.arange(expected[1], device=found.device).expand(expected)
        ):
            raise MethodError(f"'permutations' must hold each of 0..{expected[1] - 1} once in every row")
        self.client.permutations = found.long().to(self.server.gains[0].device)

    def drop_secrets(self) -> None:
        self.client.permutations = None

    # --- server -------------------------------------------------------------------------------------------------
    def protect_graph(self) -> NoGraph:
        return NoGraph("a hybrid image's tiles, and what its blurs look up, are chosen by value")

    # --- training -----------------------------------------------------------------------------------------------
    def stages(self) -> list[Stage]:
        """First the recogniser on clear images, then, with it frozen, the client's network and the server's gains."""
        client, server = self.client, self.server
        trunk = server.backbone

        def client_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            blurred, maps = self._compute(images, generator, TRAINING)
            blurred = from_levels(to_levels(blurred))
            embedding = server.compensate(blurred, self._simulated(maps, generator))
            with torch.no_grad():
                clear = trunk(images).float()
            distance = F.mse_loss(embedding.float(), clear) / batch_mean(clear.square().mean(), generator).clamp_min(
                1e-12
            )
            return TrainingStep(embedding, {"similarity": self.options.similarity_weight * distance})

        def client_input(images: Tensor, generator: torch.Generator) -> TrunkInput:
            return TrunkInput(images - obfuscate(images, self.options.obfuscation, generator, TRAINING))

        return [
            clear_stage(trunk),
            Stage(
                name="client",
                module=nn.ModuleDict({"client": client, "gains": server.gains}),
                forward=client_forward,
                embedding_size=trunk.embedding_size,
                trunk=client.backbone,
                trunk_input=client_input,
                continues_head=True,
            ),
        ]

    def _simulated(self, maps: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """The maps as the server will get them, with gradients that ignore it."""
        if self.options.simulate == "none":
            return maps
        bits: int = self.options.bits
        pruning = self.options.pruning
        if self.options.simulate == "any":
            device = maps[0].device
            bits = BITS[int(torch.randint(len(BITS), (), generator=generator, device=device))]
            pruning = 0.95 * float(torch.rand((), generator=generator, device=device))
        return [
            straight_through(values, dequantise(*quantise(prune(values.float(), pruning), bits))) for values in maps
        ]
