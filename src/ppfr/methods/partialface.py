"""PartialFace: one randomly drawn, permuted subset of high-frequency channels travels (Mi et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppfr.distributed.global_batch import randint
from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import Draw, ProtectGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions, secret_option
from ppfr.methods.common.parts import ChannelServer
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.registry import register
from ppfr.methods.common.secrets import require_secrets
from ppfr.methods.common.stage import Stage, TrainingStep, TrunkInput
from ppfr.networks.base import FilterBankConv
from ppfr.transforms import block_dct
from ppfr.util.errors import MethodError, ShapeError

# section 3.2: the ten low frequencies that show the face are dropped in every colour
DROPPED = (0, 1, 2, 3, 8, 9, 10, 16, 17, 24)
KEPT = tuple(frequency for frequency in range(64) if frequency not in DROPPED)
SUBSETS, SUBSET_SIZE, ORDERS = 6, 9, 3
TRAINING_SUBSETS = 3

# the split S and the orders P of the authors' public code (TFace, partialface), as original frequency numbers
REFERENCE_SUBSETS = (
    (5, 34, 38, 21, 42, 55, 57, 50, 62),
    (45, 49, 54, 52, 19, 11, 47, 41, 63),
    (4, 60, 29, 13, 32, 61, 59, 33, 31),
    (48, 15, 35, 22, 27, 40, 14, 43, 18),
    (36, 39, 26, 6, 53, 23, 12, 20, 58),
    (46, 51, 56, 44, 25, 37, 28, 30, 7),
)
REFERENCE_ORDERS = ((0, 1, 2, 3, 4, 5, 6, 7, 8), (7, 3, 0, 6, 5, 4, 1, 2, 8), (4, 8, 6, 0, 2, 5, 3, 7, 1))


class PartialFaceOptions(MethodOptions):
    """Settings of PartialFace."""

    table: Literal["reference", "random"] = Field(
        "reference",
        description="subsets and orders: those of the authors' code (public!), or a deployment's own draw",
    )
    table_seed: int = secret_option(0, "seed of a random table; whoever knows it knows the table")
    stem: Literal["gated", "conv"] = Field(
        "gated",
        description="server's first layer: one filter bank for each kind of payload, or the paper's single one",
    )
    stem_kernel: int = Field(3, description="side of the first layer's filters", ge=1, le=9)
    training_subsets: Literal[3, 6] = Field(
        3,
        description="how many of the 6 subsets an identity may use in training: 3 by its label (paper), or all",
    )


@register
class PartialFace(Method):
    """Random channel subsets with a fresh draw per image (Mi et al., ICCV 2023, section 3)."""

    info = MethodInfo(
        name="partialface",
        title="PartialFace",
        paper="Mi et al., Privacy-Preserving Face Recognition Using Random Frequency Components, ICCV 2023",
        secrets=("subsets", "orders"),
        departures=(
            "stem='gated' gives the server one filter bank per kind of payload and recognises the kind by its channel "
            "energies (the paper: a single filter bank, stem='conv')"
        ),
    )
    Options = PartialFaceOptions
    options: PartialFaceOptions

    def __init__(self, options: PartialFaceOptions, backbone: BackboneSpec, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self._subsets: Tensor | None
        self._orders: Tensor | None
        self._subsets, self._orders = make_table(options)
        self.client = nn.Identity()
        trunk = backbone.build(3 * SUBSET_SIZE, generator)
        self.server = ChannelServer(trunk, scaled=options.stem == "conv")
        if options.stem == "gated":
            first = trunk.first_layer
            stem = GatedConv2d(
                SUBSETS * ORDERS,
                first.in_channels,
                first.out_channels,
                options.stem_kernel,
                first.stride[0],
                generator=generator,
            )
            replace_module(trunk, first, stem)

    @property
    def schema(self) -> PayloadSchema:
        shape = (3 * SUBSET_SIZE, *self.input_size)
        spec = TensorSpec(shape, "one permuted subset, colour-major", block_dct=True)
        return PayloadSchema(self.info.name, {"channels": spec})

    # --- client -------------------------------------------------------------------------------------------------
    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        kinds = randint(SUBSETS * ORDERS, (len(images),), generator, images.device)
        return {"channels": self._channels(images, kinds)}

    def _channels(self, images: Tensor, kinds: Tensor) -> Tensor:
        """The payload of kind `order + 3 * subset` for each image, (B,27,H,W)."""
        table = self._frequencies()
        result = images.new_empty((len(images), 3, SUBSET_SIZE, *images.shape[2:]), dtype=torch.float32)
        for kind in torch.unique(kinds).tolist():
            rows = (kinds == kind).nonzero().flatten()
            result[rows] = block_dct(images[rows], table[kind]).float()
        return result.flatten(1, 2)

    def _frequencies(self) -> list[list[int]]:
        """Frequencies of the nine channels of each kind, 18 rows."""
        require_secrets(self, [self._subsets, self._orders])
        assert self._subsets is not None and self._orders is not None
        return [subset[order].tolist() for subset in self._subsets for order in self._orders]

    def protect_graph(self) -> ProtectGraph:
        """One draw, the kind; all frequencies are computed, and the secret table says which of them leave."""

        def apply(images: Tensor, subsets: Tensor, orders: Tensor, kind: Tensor) -> dict[str, Tensor]:
            subset = subsets.index_select(0, kind // ORDERS)[0]
            order = orders.index_select(0, kind % ORDERS)[0]
            frequencies = subset.index_select(0, order)
            return {"channels": block_dct(images).float().index_select(2, frequencies).flatten(1, 2)}

        return ProtectGraph(apply, self.info.secrets, (Draw("kind", "choice", (1,), SUBSETS * ORDERS),))

    def hypotheses(self) -> list[Hypothesis]:
        """The 18 combinations of subset and order, for an attacker who knows the table but not the draw."""

        def apply(images: Tensor, frequencies: list[int]) -> dict[str, Tensor]:
            return {"channels": block_dct(images, frequencies).flatten(1, 2)}

        return [
            Hypothesis(f"subset {kind // ORDERS}, order {kind % ORDERS}", partial(apply, frequencies=frequencies))
            for kind, frequencies in enumerate(self._frequencies())
        ]

    def weakened(self) -> Hypothesis:
        """One subset in one order for every image, known to all."""
        return replace(self.hypotheses()[0], name="one subset in one order, known to all")

    def secrets(self) -> dict[str, Tensor]:
        require_secrets(self, [self._subsets, self._orders])
        assert self._subsets is not None and self._orders is not None
        return {"subsets": self._subsets, "orders": self._orders}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        check_table(secrets)
        self._subsets, self._orders = secrets["subsets"].long(), secrets["orders"].long()

    def drop_secrets(self) -> None:
        self._subsets = self._orders = None

    # --- server -------------------------------------------------------------------------------------------------
    # --- training -----------------------------------------------------------------------------------------------
    def stages(self) -> list[Stage]:
        server: ChannelServer = self.server  # type: ignore[assignment]
        trunk = server.backbone

        def forward(images: Tensor, labels: Tensor, generator: torch.Generator) -> TrainingStep:
            kinds = draw_training_kinds(labels, self.options.training_subsets, generator)
            return TrainingStep(server({"channels": self._channels(images, kinds)}))

        def sample(images: Tensor, generator: torch.Generator) -> TrunkInput:
            # all kinds in turn, from a random one on: each expert gets its share of every batch
            first = torch.randint(SUBSETS * ORDERS, (1,), generator=generator)
            kinds = (torch.arange(len(images)) + first) % (SUBSETS * ORDERS)
            features = server.trunk_input({"channels": self._channels(images, kinds)})
            return TrunkInput(features, kinds if self.options.stem == "gated" else None)

        def calibrate(images: Tensor, generator: torch.Generator) -> None:
            kinds = torch.arange(len(images), device=images.device) % (SUBSETS * ORDERS)
            features = self._channels(images, kinds)
            if isinstance(trunk.first_layer, GatedConv2d):
                trunk.first_layer.fit_gate(features, kinds)
            elif server.scale is not None:
                server.scale.calibrate(features)

        return [
            Stage(
                name="server",
                module=self.server,
                forward=forward,
                embedding_size=self.embedding_size,
                trunk=trunk,
                trunk_input=sample,
                calibrate=calibrate,
            )
        ]


class GatedConv2d(FilterBankConv):
    """Convolution whose filters are mixed per image from `experts` filter banks (CondConv, Yang et al. 2019).

    The gate reads only the logarithms of the payload's channel energies: channels of different frequencies differ by
    orders of magnitude, so energies tell the kind of payload at sight. Each expert carries its own input scale, so
    that its weights see channels of unit variance whatever their frequency. Input (B,C,H,W), output (B,O,H',W').
    """

    channel_scale: Tensor
    gate_weight: Tensor
    gate_bias: Tensor

    def __init__(
        self,
        experts: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.banks = experts
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (kernel_size, kernel_size)
        self.stride = (stride, stride)
        self.padding = (kernel_size // 2, kernel_size // 2)
        # four axes, not five, so that the module converts to channels-last like its neighbours
        self.weight = nn.Parameter(torch.empty(experts * out_channels, in_channels, kernel_size, kernel_size))
        deviation = (2.0 / (out_channels * kernel_size**2)) ** 0.5
        nn.init.normal_(self.weight, std=deviation, generator=generator)
        self.register_buffer("channel_scale", torch.ones(experts, in_channels))
        # the gate is fitted in closed form, not trained: `fit_gate`
        self.register_buffer("gate_weight", torch.zeros(in_channels, experts))
        self.register_buffer("gate_bias", torch.zeros(experts))

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        filters = self.weight.view(self.banks, self.out_channels, *self.weight.shape[1:])
        filters = filters * self.channel_scale[:, None, :, None, None]
        mixed = torch.einsum("be,eochw->bochw", self.gate(features), filters)
        if torch.compiler.is_exporting():
            # a grouped convolution has a group for each image, which a graph for any number of them cannot express
            return self._by_taps(features, mixed)
        result = F.conv2d(
            features.reshape(1, batch * channels, height, width),
            mixed.flatten(0, 1).to(features.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=batch,
        )
        return result.reshape(batch, self.out_channels, *result.shape[-2:])

    def _by_taps(self, features: Tensor, filters: Tensor) -> Tensor:
        """The convolution of each image (C,H,W) with its own filters (O,C,k,k) as one matrix product an image."""
        (tall, wide), (down, across), (above, left) = self.kernel_size, self.stride, self.padding
        padded = F.pad(features, (left, left, above, above))
        rows, columns = padded.shape[2] - tall + 1, padded.shape[3] - wide + 1
        taps = [
            padded[:, :, row : row + rows : down, column : column + columns : across]
            for row in range(tall)
            for column in range(wide)
        ]
        flat = filters.permute(0, 1, 3, 4, 2).flatten(2).to(features.dtype)
        result = flat @ torch.cat(taps, 1).flatten(2)
        return result.view(*result.shape[:2], *taps[0].shape[2:])

    def bank(self, index: int) -> Tensor:
        return self.weight[index * self.out_channels : (index + 1) * self.out_channels]

    def rescaled(self, features: Tensor, banks: Tensor) -> Tensor:
        return features * self.channel_scale[banks][:, :, None, None]

    def gate(self, features: Tensor) -> Tensor:
        """Weights of the experts for each image, (B, experts), each row summing to 1."""
        with torch.autocast(features.device.type, enabled=False):
            logits = _log_energy(features.float()) @ self.gate_weight + self.gate_bias
            return logits.softmax(dim=1)

    @torch.no_grad()
    def fit_gate(self, features: Tensor, expert: Tensor) -> float:
        """Fit the gate by linear discriminant analysis and the input scales; returns the share of rows told right.

        `features` (N,C,H,W) is a sample in which every expert occurs, `expert` (N,) its true kinds. Raises ShapeError
        when a kind is missing.
        """
        counts = torch.bincount(expert, minlength=self.banks)
        if int(counts.min()) < 2:
            raise ShapeError(
                f"expert kinds occur {counts.tolist()} times; every one needs at least 2 rows to be fitted"
            )
        energy = _log_energy(features.float()).double()
        means = torch.stack([energy[expert == kind].mean(0) for kind in range(self.banks)])
        within = energy - means[expert]
        covariance = within.T @ within / len(within)
        covariance += 1e-2 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        weight = torch.linalg.solve(covariance, means.T)
        bias = -0.5 * (means * weight.T).sum(1)
        self.gate_weight.copy_(weight)
        self.gate_bias.copy_(bias)
        self.channel_scale.copy_((-means).exp())
        return float((self.gate(features).argmax(1) == expert).float().mean())


def _log_energy(features: Tensor) -> Tensor:
    """Logarithm of each channel's root mean square, (B,C)."""
    return features.flatten(2).square().mean(2).clamp_min(1e-16).log() * 0.5


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` sits below `root`; raises ShapeError when it sits nowhere."""
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
    raise ShapeError(f"{type(old).__name__} is not part of {type(root).__name__}")


def make_table(options: PartialFaceOptions) -> tuple[Tensor, Tensor]:
    """Subsets (6,9) of original frequencies and orders (3,9) of their channels, as the options ask."""
    if options.table == "reference":
        return torch.tensor(REFERENCE_SUBSETS), torch.tensor(REFERENCE_ORDERS)
    generator = torch.Generator().manual_seed(options.table_seed)
    shuffled = torch.tensor(KEPT)[torch.randperm(len(KEPT), generator=generator)]
    orders = torch.stack([torch.randperm(SUBSET_SIZE, generator=generator) for _ in range(ORDERS)])
    return shuffled.reshape(SUBSETS, SUBSET_SIZE), orders


def check_table(secrets: Mapping[str, Tensor]) -> None:
    """Raise MethodError unless `secrets` holds a split of the 54 kept frequencies and three permutations."""
    if set(secrets) != {"subsets", "orders"}:
        raise MethodError(f"partialface needs the secrets ['orders', 'subsets']; got {sorted(secrets)}")
    subsets, orders = secrets["subsets"], secrets["orders"]
    if tuple(subsets.shape) != (SUBSETS, SUBSET_SIZE) or sorted(subsets.flatten().tolist()) != list(KEPT):
        raise MethodError(
            f"'subsets' must split the frequencies {KEPT} into 6 rows of 9; got shape {tuple(subsets.shape)}"
        )
    if tuple(orders.shape) != (ORDERS, SUBSET_SIZE) or any(
        sorted(o) != list(range(SUBSET_SIZE)) for o in orders.tolist()
    ):
        raise MethodError(f"'orders' must be 3 permutations of 0..8; got {orders.tolist()}")


def draw_training_kinds(labels: Tensor, subsets: int, generator: torch.Generator) -> Tensor:
    """Draw a kind (order + 3 * subset) for each label (B,).

    With 3 subsets the label modulo 20 picks one of the 20 triples of the 6, in lexicographic order (section 3.4).
    """
    orders = randint(ORDERS, labels.shape, generator, labels.device)
    if subsets == SUBSETS:
        chosen = randint(SUBSETS, labels.shape, generator, labels.device)
    else:
        triples = torch.tensor(list(combinations(range(SUBSETS), TRAINING_SUBSETS)), device=labels.device)
        choice = randint(TRAINING_SUBSETS, labels.shape, generator, labels.device)
        chosen = triples[labels % len(triples), choice]
    return orders + ORDERS * chosen
