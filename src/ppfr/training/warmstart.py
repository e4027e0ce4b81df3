"""Start warm: a teacher's trunk, and a first layer fitted in closed form from payloads to the teacher's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.methods import Stage
from ppfr.networks import Backbone, Recogniser
from ppfr.networks.base import FilterBankConv
from ppfr.util.errors import CheckpointError

_BATCH = 32
# patch values per image that enter the normal equations, whose cost grows with the square of a patch's length
_PATCH_VALUES = 400_000


@dataclass(frozen=True)
class WarmStart:
    """What a warm start did: how many tensors were taken, which were not, and how well the first layer could be fitted.

    `explained` is the share of the variance of the first layer's target that the fit reproduces (1 is exact).
    """

    taken: int
    left: tuple[str, ...]
    explained: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        return asdict(self) | {"left": list(self.left)}


def can_warm_start(trunk: Backbone, teacher: Recogniser) -> bool:
    """True when the teacher is a network of the trunk's own kind and width, so that its weights have a place there."""
    source = teacher.backbone
    return (
        source is not None
        and type(source) is type(trunk)
        and source.first_layer.out_channels == trunk.first_layer.out_channels
        and source.input_size == trunk.input_size
    )


@torch.no_grad()
def warm_start(
    stage: Stage, teacher: Recogniser, images: Tensor, generator: torch.Generator, *, ridge: float = 1e-5
) -> WarmStart:
    """Fill `stage.trunk` from the teacher and fit its first layer by ridge regression.

    The clients here are linear, so the teacher's first-layer outputs on clear images are nearly a linear function of
    the payload's patches; least squares over a sample of `images` (N,3,H,W in [-1,1]) finds it. The offset goes into
    the layer's bias, or else into the running mean of the norm layer behind. Raises CheckpointError when the teacher is
    not of the trunk's kind.
    """
    trunk, source = stage.trunk, teacher.backbone
    if trunk is None or stage.trunk_input is None or source is None or not can_warm_start(trunk, teacher):
        raise CheckpointError(
            f"stage {stage.name!r} cannot start warm: its trunk is {_describe(trunk)}, the teacher "
            f"{_describe(source)}; set backbone.name=auto with a PyTorch teacher, or warm_start=false"
        )
    taken, left = _copy_matching(source, trunk)

    def target(batch: Tensor) -> Tensor:
        features: Tensor = source.first_layer(source.crop(teacher.preprocessing(batch)))
        return features

    explained, offset = fit_first_layer(stage, target, images, generator, ridge=ridge)
    bias = getattr(trunk.first_layer, "bias", None)
    if bias is not None:
        bias.copy_(offset)
    else:
        norm_behind_first_layer(trunk).running_mean.sub_(offset)  # type: ignore[union-attr]
    return WarmStart(taken, tuple(left), explained)


@torch.no_grad()
def align_banks(stage: Stage, images: Tensor, generator: torch.Generator) -> float:
    """Without a teacher: let all banks of a first layer start as one random filter bank on the clear image.

    Untrained banks would give the trunk unrelated features for each kind of payload; fitted to one common target, they
    give the same. Returns the explained share of the target's variance.
    """
    assert stage.trunk is not None
    filters = torch.randn(stage.trunk.first_layer.out_channels, 3, 3, 3, generator=generator) / 27**0.5
    # payloads without low frequencies show no brightness, so the common target must not ask for it
    filters -= filters.mean(dim=(2, 3), keepdim=True)

    def target(batch: Tensor) -> Tensor:
        trunk = stage.trunk
        assert trunk is not None
        return F.conv2d(trunk.crop(batch), filters, stride=trunk.first_layer.stride, padding=1)

    explained, _ = fit_first_layer(stage, target, images, generator)
    return explained


def _describe(network: Backbone | None) -> str:
    if network is None:
        return "an ONNX graph without named weights"
    return f"{network.name} (width {network.width:g}, input {network.input_size[0]}x{network.input_size[1]})"


def _copy_matching(source: nn.Module, trunk: nn.Module) -> tuple[int, list[str]]:
    """Copy tensors of equal name and shape; returns their number and the names that found no place."""
    own = trunk.state_dict()
    matching = {
        name: value for name, value in source.state_dict().items() if name in own and own[name].shape == value.shape
    }
    trunk.load_state_dict(matching, strict=False)
    return len(matching), sorted(name for name in own if name not in matching)


def norm_behind_first_layer(trunk: Backbone) -> nn.BatchNorm2d:
    """The batch norm that reads the first layer's output; raises CheckpointError when there is none."""
    modules = list(trunk.modules())
    behind = modules[next(at for at, module in enumerate(modules) if module is trunk.first_layer) + 1 :]
    for module in behind:
        if isinstance(module, nn.BatchNorm2d):
            return module
    raise CheckpointError(f"{trunk.name} has no batch norm behind its first layer to take a fitted offset")


class _Moments:
    """Sums of one bank's patches (P values a position) and targets (O values), from which least squares follows."""

    def __init__(self, patch: int, out: int) -> None:
        self.gram = torch.zeros(patch, patch, dtype=torch.float64)
        self.cross = torch.zeros(patch, out, dtype=torch.float64)
        self.patch_sum = torch.zeros(patch, dtype=torch.float64)
        self.target_sum = torch.zeros(out, dtype=torch.float64)
        self.target_energy = 0.0
        self.count = 0

    def add(self, patches: Tensor, wanted: Tensor) -> None:
        """Take positions as columns: patches (P,n), targets (O,n)."""
        self.gram += (patches @ patches.T).double()
        self.cross += (patches @ wanted.T).double()
        self.patch_sum += patches.sum(1).double()
        self.target_sum += wanted.sum(1).double()
        self.target_energy += float(wanted.square().sum())
        self.count += patches.shape[1]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, float, float]:
        """Weights (P,O), offset (O,), variance explained and variance to explain (sums over positions)."""
        patch_mean, target_mean = self.patch_sum / self.count, self.target_sum / self.count
        gram = self.gram - self.count * torch.outer(patch_mean, patch_mean)
        cross = self.cross - self.count * torch.outer(patch_mean, target_mean)
        damp = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weights = torch.linalg.solve(gram + damp, cross)
        explained = float((weights * (2 * cross - gram @ weights)).sum())
        total = self.target_energy - self.count * float(target_mean.square().sum())
        return weights, target_mean - patch_mean @ weights, explained, total


def patches_at(features: Tensor, layer: nn.Conv2d | FilterBankConv, positions: Tensor) -> Tensor:
    """The columns `positions` (n,) of `F.unfold` of features (B,C,H,W) for a layer: patches (B, C * kernel, n).

    Only these are gathered: all patches of a stride of 2 take more than twice the memory of the features.
    """
    assert not isinstance(layer.padding, str)
    height, width = features.shape[2:]
    (down, across), (tall, wide), (above, left) = layer.stride, layer.kernel_size, layer.padding
    columns = (width + 2 * left - wide) // across + 1
    kernel = torch.arange(tall * wide)[:, None]
    rows = positions // columns * down - above + kernel // wide
    places = positions % columns * across - left + kernel % wide
    inside = (rows >= 0) & (rows < height) & (places >= 0) & (places < width)
    at = torch.where(inside, rows * width + places, 0).flatten()
    found = features.flatten(2).index_select(2, at).view(len(features), -1, *inside.shape)
    return found.masked_fill_(~inside, 0).flatten(1, 2)


@torch.no_grad()
def fit_first_layer(
    stage: Stage,
    target: Callable[[Tensor], Tensor],
    images: Tensor,
    generator: torch.Generator,
    *,
    ridge: float = 1e-5,
) -> tuple[float, Tensor]:
    """Fit the trunk's first layer to `target(images)`; returns the explained share of variance and the offset left.

    Solves the ridge-regularised normal equations (`ridge` relative to the patches' mean variance), one system for each
    filter bank. The offset is the banks' mean: a layer of several banks has no bias of its own.
    """
    trunk = stage.trunk
    assert trunk is not None and stage.trunk_input is not None
    layer = trunk.first_layer
    banks = layer.banks if isinstance(layer, FilterBankConv) else 1
    size = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    moments = [_Moments(size, layer.out_channels) for _ in range(banks)]
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        sample = stage.trunk_input(batch, generator)
        features = trunk.crop(sample.features).float()
        kinds = torch.zeros(len(batch), dtype=torch.long) if sample.bank is None else sample.bank
        if isinstance(layer, FilterBankConv):
            features = layer.rescaled(features, kinds)
        wanted = target(batch).float().flatten(2)
        chosen = torch.randperm(wanted.shape[2], generator=generator)[: _PATCH_VALUES // size]
        patches, wanted = patches_at(features, layer, chosen), wanted[:, :, chosen]
        # wide payloads of a batch take 300 MB: they go before the next batch's come
        del features, sample
        for kind in torch.unique(kinds).tolist():
            rows = kinds == kind
            moments[kind].add(patches[rows].transpose(0, 1).flatten(1), wanted[rows].transpose(0, 1).flatten(1))
    explained = total = 0.0
    offset = torch.zeros(layer.out_channels, dtype=torch.float64)
    for kind, moment in enumerate(moments):
        weights, kind_offset, kind_explained, kind_total = moment.solve(ridge)
        bank = layer.bank(kind) if isinstance(layer, FilterBankConv) else layer.weight
        bank.copy_(weights.T.reshape(bank.shape))
        offset += kind_offset / banks
        explained, total = explained + kind_explained, total + kind_total
    return explained / total, offset.float()
