"""PartialFace: one randomly drawn, permuted subset of high-frequency channels travels (Mi et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Literal

import torch
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
from ppfr.networks.gated import GatedConv2d, replace_module
from ppfr.transforms import block_dct
from ppfr.util.errors import MethodError

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
        """The 18 combinations of subset and order, for one who knows the table but not the draw."""

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
