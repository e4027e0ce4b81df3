"""AVIH: images like noise that a frozen recogniser takes for the face and a key turns back to it (ICCV 2023)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.distributed.global_batch import randn
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, payload_option
from ppfr.methods.common.parts import ChannelServer, clear_stage
from ppfr.methods.common.patterns import EmbeddingMatch, Judged, LossTerm, Patterns, UpdateRule, find_patterns
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.stage import Stage, TrainingStep
from ppfr.networks import Backbone
from ppfr.networks.inference import folded
from ppfr.networks.unet import REDUCTION, UNet, build_unet
from ppfr.util.errors import MethodError

# side of the blocks whose variances the third term makes equal
_BLOCK = 8
# what the key network learns on: this much of the face under noise of this deviation, both in [0,1]
_FACE, _NOISE = 0.3, 0.2


class AVIHOptions(MethodOptions):
    """Settings of AVIH."""

    iterations: int = payload_option([800], "updates of an image", ge=1)
    stop_at: float | None = payload_option(
        [None], "an image is finished early when its embedding's cosine to the face's is this", gt=0, le=1
    )
    recovery_weight: float = payload_option([0.2], "weight of the key network's error", ge=0)
    variance_weight: float = payload_option([0.1], "weight of uneven local variance", ge=0)
    key_width: float = Field(
        0.25, ge=0.125, description="width of the key network; 1 is a U-Net of 64 to 1024 channels"
    )


class KeyRecovery:
    """Mean squared error between the key network's output for a pattern (n,3,h,w) and its image (N,3,h,w) in [0,1]."""

    def __init__(self, key: Callable[[Tensor], Tensor], images: Tensor, weight: float) -> None:
        self.key, self.images, self.weight = key, images, weight

    def __call__(self, patterns: Tensor, rows: Tensor) -> Judged:
        error = (self.key(patterns) - self.images[rows]).square().mean(dim=(1, 2, 3))
        return Judged(self.weight * error)


class EvenVariance:
    """Variance of the local variances (8x8 blocks) of a pattern (n,C,h,w), relative to their mean; near 0 for noise."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, patterns: Tensor, rows: Tensor) -> Judged:
        mean, power = F.avg_pool2d(patterns, _BLOCK), F.avg_pool2d(patterns.square(), _BLOCK)
        variance = (power - mean.square()).flatten(1)
        level = variance.mean(1, keepdim=True).clamp_min(1e-8)
        return Judged(self.weight * (variance / level - 1).square().mean(1))


class ObfuscatingClient(nn.Module):
    """The client: the recogniser that its images are made for, and the key network, which is secret."""

    key: UNet | None

    def __init__(self, options: AVIHOptions, recogniser: Backbone, key: UNet) -> None:
        super().__init__()
        self.options, self.recogniser, self.key = options, recogniser, key

    def find(self, images: Tensor, generator: torch.Generator, state_file: Path | None) -> Patterns:
        """Obfuscated images for images (B,3,H,W) in [-1,1], from noise."""
        assert self.key is not None
        with torch.inference_mode(False), torch.no_grad():
            # tensors made in inference mode could not be differentiated through
            faces = (images.float() + 1) / 2
            network = folded(self.recogniser).requires_grad_(False)
            key = folded(self.key).requires_grad_(False)
            targets = network(faces * 2 - 1)
            # the mean square of a target's values becomes 1: weights then mean the same for every recogniser
            unit = targets.square().mean().clamp_min(1e-12).rsqrt()
            start = 0.5 + 0.25 * randn(faces.shape, generator, faces.device)
        terms: list[LossTerm] = [
            EmbeddingMatch(lambda patterns: network(patterns * 2 - 1) * unit, targets * unit),
            KeyRecovery(key, faces, self.options.recovery_weight),
            EvenVariance(self.options.variance_weight),
        ]
        rule = UpdateRule(iterations=self.options.iterations, stop_at=self.options.stop_at)
        seal = hashlib.sha256(targets.cpu().numpy().tobytes()).hexdigest()
        return find_patterns(start.clamp(0, 1), terms, rule, state_file=state_file, key=seal, title="avih: images")


class ObfuscatedServer(ChannelServer):
    """The server: an unchanged recogniser, which takes images in [0,1] to [-1,1]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, "image", scaled=False)

    def trunk_input(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.tensor] * 2 - 1


@register
class AVIH(Method):
    """Images like noise that keep the embedding of the face, found by gradient descent (Su et al., ICCV 2023).

    Each image is replaced by one that starts from noise and is optimised, by the rule of PrivacyHFR's patterns, for
    three terms: its embedding is that of the face, a secret key network turns it back to the face, and its local
    variance is that of noise. The recogniser is any frozen one. The holder of the key recovers the face with `recover`;
    without it the image reveals its embedding, and what can be inferred about the key. An image costs
    `iterations` passes of both networks forwards and backwards, on the client.
    """

    info = MethodInfo(
        name="avih",
        title="AVIH",
        paper="Su et al., Hiding Visual Information via Obfuscating Adversarial Perturbations, ICCV 2023",
        secrets=("key",),
        departures=(
            "the key network is a small U-Net, trained to find faces under strong noise; embeddings are compared "
            "relative to their mean square; one key for all images of a deployment"
        ),
    )
    Options = AVIHOptions
    options: AVIHOptions
    client: ObfuscatingClient
    server: ObfuscatedServer

    def __init__(self, options: AVIHOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        # the server first: in a file, what both hold goes by the server's names
        self.server = ObfuscatedServer(backbone.build(3, generator))
        if any(side % REDUCTION for side in self.input_size):
            raise MethodError(f"avih: images are {self.input_size}; its key network needs multiples of {REDUCTION}")
        self.client = ObfuscatingClient(options, self.server.backbone, _build_key(options, generator))

    @property
    def schema(self) -> PayloadSchema:
        spec = TensorSpec((3, *self.input_size), "an image like noise, RGB in [0,1], with the embedding of the face")
        return PayloadSchema(self.info.name, {"image": spec})

    def remarks(self) -> list[str]:
        """States the number of updates of an image."""
        return [
            f"{self.options.iterations} updates an image (the paper takes 800 and more); images that share a key help "
            "to guess it (Jang et al., arXiv 2024)",
            *super().remarks(),
        ]

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": self.find_images(images, generator).pattern.float()}

    def protect_graph(self) -> NoGraph:
        return NoGraph("an image is searched for by gradients, with the recogniser in the loop")

    def find_images(self, images: Tensor, generator: torch.Generator, *, state_file: Path | None = None) -> Patterns:
        """The patterns that `protect` sends for images (B,3,H,W) in [-1,1], with the search's state."""
        self._require_key()
        return self.client.find(images, generator, state_file)

    @torch.no_grad()
    def recover(self, payload: Payload) -> Tensor:
        """Recover images (B,3,H,W) in [0,1] from a payload with the key network.

        Raises PayloadError for a foreign payload, MethodError without the key.
        """
        self.schema.check(payload.tensors)
        key = self._require_key()
        recovered: Tensor = key(payload["image"]).clamp(0, 1)
        return recovered

    def hypotheses(self) -> list[Hypothesis]:
        """None: the noise it starts from is one of too many to list."""
        return []

    # --- the key --------------------------------------------------------------------------------------------------
    def own_tensors(self) -> dict[str, Tensor]:
        """Without the key's weights: they are a secret of the client, and no server's file may hold them."""
        return {name: tensor for name, tensor in super().own_tensors().items() if not name.startswith("client.key.")}

    def _require_key(self) -> UNet:
        if self.client.key is None:
            raise MethodError(
                "avih: the client's secrets (key) are absent, so it can embed but neither protect nor recover; put the "
                "run's secrets.safetensors beside its model.safetensors"
            )
        return self.client.key

    def secrets(self) -> dict[str, Tensor]:
        return {f"key.{name}": tensor.detach() for name, tensor in self._require_key().state_dict().items()}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        key = _build_key(self.options, torch.Generator().manual_seed(0))
        own = {f"key.{name}": tensor for name, tensor in key.state_dict().items()}
        misfits = [name for name in own if name not in secrets or secrets[name].shape != own[name].shape]
        if misfits or len(own) != len(secrets):
            raise MethodError(
                f"avih needs the {len(own)} tensors of a key network of width {self.options.key_width:g}; missing or "
                f"of another shape: {misfits[:3] or 'none'}, {len(secrets)} given"
            )
        key.load_state_dict({name.removeprefix("key."): tensor for name, tensor in secrets.items()})
        self.client.key = key.to(next(self.server.parameters()).device).train(self.training)

    def drop_secrets(self) -> None:
        self.client.key = None

    # --- training -------------------------------------------------------------------------------------------------
    def stages(self) -> list[Stage]:
        """The recogniser on clear images, which stays frozen; then the key network."""
        trunk = self.server.backbone

        def key_forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            faces = (images.float() + 1) / 2
            found = self._require_key()(under_noise(faces, generator))
            return TrainingStep(trunk(found * 2 - 1), {"recovery": (found - faces).abs().mean() * 10})

        return [
            clear_stage(trunk),
            Stage(
                name="key",
                module=self._require_key(),
                forward=key_forward,
                embedding_size=trunk.embedding_size,
                continues_head=True,
            ),
        ]


def _build_key(options: AVIHOptions, generator: torch.Generator) -> UNet:
    """A fresh key network, whose initial output is nearly grey: with He's weights the error would exceed the signal."""
    key = build_unet(in_channels=3, out_channels=3, width=options.key_width, generator=generator)
    last = key.last_layer
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.fill_(0.5)
    return key


def under_noise(faces: Tensor, generator: torch.Generator) -> Tensor:
    """Training input of the key network: faces (B,3,H,W) in [0,1] at low contrast with strong noise, in [0,1]."""
    noise = randn(faces.shape, generator, faces.device)
    return (0.5 + _FACE * (faces - 0.5) + _NOISE * noise).clamp(0, 1)
