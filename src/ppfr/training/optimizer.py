"""What moves the weights: the optimizer, its learning rate over time, clipping, and the type to compute in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ppfr.distributed.process_group import Ranks
from ppfr.recipes.recipe import Schedule, StageSettings

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def build_optimizer(
    parts: nn.Module, settings: StageSettings, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; norm layers, PReLU slopes and biases are found by module type and spared from weight decay.

    `scales` are factors on the learning rate of a parameter, or of everything below a module, by its name in `parts`.
    """
    chosen = settings.optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in parts.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            factors = [f for below, f in (scales or {}).items() if f"{path}.{name}.".startswith(f"{below}.")]
            spared = isinstance(module, _NORMS) or name.endswith("bias")
            decay = 0.0 if spared else chosen.weight_decay
            groups.setdefault((decay, math.prod(factors)), []).append(parameter)
    listed = [
        {"params": found, "weight_decay": decay, "scale": scale}
        for (decay, scale), found in sorted(groups.items(), reverse=True)
    ]
    if chosen.name == "adamw":
        return torch.optim.AdamW(listed, lr=chosen.lr)
    if chosen.name == "adam":
        return torch.optim.Adam(listed, lr=chosen.lr)
    return torch.optim.SGD(listed, lr=chosen.lr, momentum=chosen.momentum)


def clip_gradients(shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter], most: float, ranks: Ranks) -> None:
    """Scale all gradients down to a norm of `most`, over `shared` weights, alike on all ranks, and each rank's `own`.

    The norm is that of one process with all the weights.
    """
    if not ranks.several:
        nn.utils.clip_grad_norm_([*shared, *own], most)
        return
    squares = [nn.utils.get_total_norm(_gradients(parameters)).square() for parameters in (shared, own)]
    total = (squares[0] + ranks.sum_(squares[1].to(squares[0].device))).sqrt()
    nn.utils.clip_grads_with_norm_([*shared, *own], most, total)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def rate_factor(schedule: Schedule, step: int, steps: int, per_epoch: int) -> float:
    """Learning rate at `step` of `steps` as a factor of its peak.

    `one_cycle` rises from 1/25 and falls to 1e-4 of the peak along cosines (Smith and Topin 2019).
    """
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "steps":
        return float(schedule.gamma ** sum(step >= milestone * per_epoch for milestone in schedule.milestones))
    rise = max(1.0, schedule.warmup * steps)
    if step < rise:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise))
    progress = (step - rise) / max(1.0, steps - rise)
    return 1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, or None for plain float32; `auto` takes bfloat16 where the processor computes in it."""
    if precision == "fp32":
        return None
    if precision in {"bf16", "fp16"}:
        return torch.bfloat16 if precision == "bf16" else torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _computes_bf16() else None


def _computes_bf16() -> bool:
    """True for processors with AVX512-BF16 or AMX instructions; elsewhere bfloat16 is emulated and slower."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
