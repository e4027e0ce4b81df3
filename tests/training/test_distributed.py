"""Training on two ranks takes the steps of one process, whatever the method draws and wherever the classes lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ppfr
from ppfr.data.faceset import FaceSet
from ppfr.data.multi_dataset import JointFaces
from ppfr.distributed.process_group import RankError
from ppfr.recipes.recipe import Recipe
from ppfr.training import trainer as trainer_module
from ppfr.training.loop import train
from ppfr.training.run import Run
from ppfr.training.trainer import StageTrainer
from ppfr.util.errors import DataError, RecipeError
from support.processes import on_ranks

PEOPLE, IMAGES = 5, 8


def faces(seed: int = 0) -> FaceSet:
    """Noise patterns, one a person, under noise."""
    rng = np.random.default_rng(seed)
    patterns = np.repeat(np.repeat(rng.integers(40, 216, (PEOPLE, 14, 14, 3)), 8, axis=1), 8, axis=2)
    images = np.concatenate([pattern[None] + rng.integers(-30, 30, (IMAGES, 112, 112, 3)) for pattern in patterns])
    images = images.clip(0, 255).astype(np.uint8)
    people = [str(person) for person in range(PEOPLE) for _ in range(IMAGES)]
    return FaceSet("patterns", people, lambda index: images[index], names=[str(n) for n in range(len(people))])


def recipe(method: str, **changes: Any) -> Recipe:
    training = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"name": "sgd", "lr": 2e-3},
        "losses": {"distil": 1.0, "margin": 1.0},
        "head": {"name": "cosface", "options": {"margin": 0.1, "scale": 8}},
        "clip": 1.0,
        **changes.pop("training", {}),
    }
    settings = {
        "method": method,
        "training": training,
        "precision": "fp32",
        "warm_start_images": 36,
        "augment": AUGMENT,
    }
    return Recipe.model_validate({**settings, **changes})


OPTIONS: dict[str, dict[str, Any]] = {
    "partialface": {"training_subsets": 6},
    "minusface": {"generator_width": 0.125, "sparsity_weight": 0.01},
    "proface-c": {"obfuscation": "gaussian"},
}
AUGMENT = {"flip": True, "shift": 4, "jitter": 0.2}


def run_training(settings: Recipe, folder: Path, network: str = "mobilefacenet", *, resume: bool = False) -> Run:
    options = OPTIONS.get(settings.method, {})
    # torch's channels-last convolutions crash on an IR-18 of 8 channels
    width = 0.25 if network == "ir18" else 0.125
    method = ppfr.create(settings.method, network, 0, width=width, embedding_size=16, **options)
    targets = F.normalize(torch.randn(PEOPLE * IMAGES, 16, generator=torch.Generator().manual_seed(1)))
    run = Run(folder)
    train(method, settings, faces(), run, targets=targets, resume=resume)
    return run


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in rows(run)]


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "LOG_EVERY", 1)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "draws of the client": ("partialface", "mobilefacenet", {}),
    "dropout in the network": ("arcface", "ir18", {"dropout": {"start": 0.3}}),
    "frozen norms": ("arcface", "mobilefacenet", {"freeze_norm": True}),
    "whole head": (
        "arcface",
        "mobilefacenet",
        {"head": {"name": "curricularface", "options": {"scale": 8}, "sharded": False}},
    ),
    "whole head of norms": (
        "arcface",
        "mobilefacenet",
        {"head": {"name": "adaface", "options": {"scale": 8}, "sharded": False}},
    ),
    "moving statistics": ("arcface", "mobilefacenet", {"head": {"name": "adaface", "options": {"scale": 8}}}),
    "softmax, no clipping": ("arcface", "mobilefacenet", {"head": {"name": "softmax"}, "clip": None}),
    "a stage without weights, then a carried head": ("privacyhfr", "mobilefacenet", {}),
    "a ratio of means": ("proface-c", "mobilefacenet", {"epochs": 1}),
}

SLOW = {
    "whole head",
    "moving statistics",
    "dropout in the network",
    "whole head of norms",
    "softmax, no clipping",
    "a stage without weights, then a carried head",
    "a ratio of means",
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path, case: str) -> None:
    name, network, training = CASES[case]
    settings = recipe(name, training=training)
    alone = run_training(settings, tmp_path / "alone", network)

    def work() -> None:
        run_training(settings, tmp_path / "both", network)

    on_ranks(2, work)
    both = Run(tmp_path / "both")
    assert len(losses(both)) == len(losses(alone)) > 2
    assert losses(both) == pytest.approx(losses(alone), abs=1e-4, rel=1e-4)
    assert both.finished
    assert not list(both.folder.glob("checkpoint*"))
    found, wanted = ppfr.load(both.folder).state_dict(), ppfr.load(alone.folder).state_dict()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_loss_of_a_mean_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """MinusFace's sparsity; its recogniser reads tiny residues, so its own losses show the last bit of every sum."""
    settings = recipe("minusface", training={"epochs": 1, "batch_size": 20}, stages={"recogniser": {"epochs": 0}})
    alone = run_training(settings, tmp_path / "alone")

    def work() -> None:
        run_training(settings, tmp_path / "both")

    on_ranks(2, work)
    for mine, expected in zip(rows(Run(tmp_path / "both")), rows(alone), strict=True):
        for key in ("loss_sparsity", "loss_reconstruction"):
            assert mine[key] == pytest.approx(expected[key], abs=1e-5)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (2, 1, "arcface"),
        (1, 2, "adaface"),
        pytest.param(2, 3, "adaface", marks=pytest.mark.slow),
        pytest.param(3, 2, "softmax", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path, before: int, after: int, kind: str) -> None:
    """Stopped inside the second epoch; centres, moving statistics and the optimizer's state are cut anew."""
    # frozen norms: with moving ones, sums in another order grow beyond the tolerance within these steps
    training: dict[str, Any] = {"head": {"name": kind}, "batch_size": 12, "freeze_norm": True}
    if kind == "adaface":
        training["optimizer"] = {"name": "adamw", "lr": 1e-4}
    settings = recipe("arcface", training=training, checkpoint_minutes=1e-9)
    whole = run_training(settings, tmp_path / "whole")
    take_step = StageTrainer._step

    def failing_step(self: StageTrainer, step: int, *arguments: Any) -> dict[str, float]:
        if step == 4:
            raise Stopped
        return take_step(self, step, *arguments)

    def begin() -> None:
        StageTrainer._step = failing_step  # type: ignore[method-assign]
        try:
            with pytest.raises(Stopped):
                run_training(settings, tmp_path / "broken")
        finally:
            StageTrainer._step = take_step  # type: ignore[method-assign]

    def go_on() -> None:
        run_training(settings, tmp_path / "broken", resume=True)

    for world, work in ((before, begin), (after, go_on)):
        if world == 1:
            work()
        else:
            on_ranks(world, work)
    broken = Run(tmp_path / "broken")
    assert losses(broken) == pytest.approx(losses(whole), abs=1e-4, rel=1e-4)
    assert [row["step"] for row in rows(broken)] == list(range(1, len(losses(whole)) + 1))
    assert not list(broken.folder.glob("*checkpoint*"))


@pytest.mark.slow
def test_a_sample_of_classes_learns(tmp_path: Path) -> None:
    training = {
        "epochs": 8,
        "head": {"name": "cosface", "options": {"margin": 0.0, "scale": 8}, "sample_rate": 0.5},
        "optimizer": {"name": "adamw", "lr": 5e-3},
        "losses": {"distil": 0.0, "margin": 1.0},
    }
    settings = recipe("arcface", training=training, checkpoint_minutes=1e-9)

    def work() -> None:
        run_training(settings, tmp_path / "sampled")

    on_ranks(2, work)
    history = losses(Run(tmp_path / "sampled"))
    assert np.mean(history[-4:]) < 0.8 * np.mean(history[:4])


def two_sets() -> JointFaces:
    first, second = faces(), faces(seed=1)
    second.name = "others"
    return JointFaces([first, second], [3, 1], [1.0, 0.5])


@pytest.mark.parametrize("sharded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_data_sets_have_a_head_each(tmp_path: Path, sharded: bool) -> None:
    """Two ranks take the steps of one process; and the loss is the weighted sum of the sets'."""
    head = {"name": "cosface", "options": {"scale": 8}, "sharded": sharded}
    settings = recipe("arcface", training={"head": head, "freeze_norm": True, "epochs": 0.5})

    def learn(folder: str) -> Run:
        run = Run(tmp_path / folder)
        targets = F.normalize(torch.randn(2 * PEOPLE * IMAGES, 16, generator=torch.Generator().manual_seed(1)))
        method = ppfr.create("arcface", "mobilefacenet", 0, width=0.125, embedding_size=16)
        train(method, settings, two_sets(), run, targets=targets)
        return run

    alone = learn("alone")

    def work() -> None:
        learn("both")

    on_ranks(2, work)
    assert losses(Run(tmp_path / "both")) == pytest.approx(losses(alone), abs=1e-4, rel=1e-4)
    # untrained heads of 5 people each: cross entropy near that of chance, with a margin of 0.4 at scale 8
    chance = np.log(1 + 4 * np.exp(8 * 0.4))
    assert rows(alone)[0]["loss_margin"] == pytest.approx(1.5 * chance, rel=0.4)


def test_what_one_rank_refuses_all_refuse(tmp_path: Path) -> None:
    settings = recipe("arcface")
    run_training(settings, tmp_path / "run")

    def again() -> str:
        with pytest.raises((RecipeError, RankError)) as caught:
            run_training(settings, tmp_path / "run")
        return str(caught.value)

    refusals = on_ranks(2, again)
    assert "already holds a run" in refusals[0]
    assert "the first rank failed" in refusals[1]


def test_a_batch_must_divide_by_the_ranks(tmp_path: Path) -> None:
    def work() -> str:
        with pytest.raises(DataError) as caught:
            run_training(recipe("arcface", training={"batch_size": 7}), tmp_path / "run")
        return str(caught.value)

    assert "expected a multiple of the ranks" in on_ranks(2, work)[0]


def test_samples_need_shards() -> None:
    with pytest.raises(ValueError, match=r"sample_rate below 1 needs sharded: true"):
        recipe("arcface", training={"head": {"sample_rate": 0.1, "sharded": False}})
