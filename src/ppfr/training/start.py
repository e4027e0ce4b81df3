"""The start of a stage: calibration on a sample of images, and a warm start from the teacher where possible."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ppfr.data.images import to_tensor
from ppfr.methods import Stage
from ppfr.networks.base import FilterBankConv
from ppfr.training.job import TrainingJob
from ppfr.training.warmstart import align_banks, can_warm_start, warm_start

# images at least that calibrate a stage and fit its first layer
_LEAST_SAMPLE = 144


@torch.no_grad()
def start_stage(job: TrainingJob, stage: Stage, index: int, parts: nn.Module) -> dict[str, Any]:
    """Calibrate a stage on a sample and start it warm from the teacher where possible; returns what was done.

    `parts` holds what the stage trains, which may include helpers that are no part of the method. Computes on the CPU
    and leaves all on the job's device.
    """
    recipe, method, teacher = job.recipe, job.method, job.teacher
    generator = torch.Generator().manual_seed(recipe.seed * 7919 + 500 + index)
    wanted = max(recipe.warm_start_images, stage.sample)
    chosen = torch.randperm(len(job.faces), generator=generator)[:wanted]
    # a tiny set is used several times over, so that every kind of payload is seen
    chosen = chosen.repeat(-(-_LEAST_SAMPLE // len(chosen)))
    images = to_tensor(job.faces.images(chosen.numpy()))
    for module in (method, parts):
        module.eval().cpu()
    notes: dict[str, Any] = {}
    if stage.calibrate is not None:
        stage.calibrate(images[: max(_LEAST_SAMPLE, stage.sample)], generator)
    # images that only the calibration needed make the fit of the first layer slower, not better
    images = images[: max(_LEAST_SAMPLE, recipe.warm_start_images)]
    if stage.trunk is not None:
        if recipe.warm_start and teacher is not None and can_warm_start(stage.trunk, teacher):
            notes["warm_start"] = warm_start(stage, teacher, images, generator).to_dict()
            if stage.after_warm_start is not None:
                stage.after_warm_start(images[:32], generator)
        elif isinstance(stage.trunk.first_layer, FilterBankConv):
            notes["aligned_banks"] = align_banks(stage, images, generator)
    for module in (method, parts):
        module.to(torch.device(job.device))
    return notes
