"""The loop: it learns, it resumes exactly, and it loses nothing when something breaks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import ppfr
from ppfr.data.faceset import FaceSet
from ppfr.methods import Mixture, TrainingStep
from ppfr.methods.common.files import MODEL_FILE, SECRETS_FILE
from ppfr.networks import Preprocessing, Recogniser, build_backbone
from ppfr.recipes.recipe import Dropout, Recipe, Schedule, StageSettings
from ppfr.training import trainer as trainer_module
from ppfr.training.job import TrainingJob
from ppfr.training.loop import train
from ppfr.training.optimizer import build_optimizer, rate_factor
from ppfr.training.run import Run
from ppfr.training.trainer import StageTrainer
from ppfr.util.errors import CheckpointError, RecipeError

PEOPLE, IMAGES = 4, 6


def faces(seed: int = 0) -> FaceSet:
    """Noise patterns, one a person, under noise: learnable in seconds."""
    rng = np.random.default_rng(seed)
    patterns = np.repeat(np.repeat(rng.integers(40, 216, (PEOPLE, 14, 14, 3)), 8, axis=1), 8, axis=2)
    images = np.concatenate([pattern[None] + rng.integers(-30, 30, (IMAGES, 112, 112, 3)) for pattern in patterns])
    images = images.clip(0, 255).astype(np.uint8)
    people = [str(person) for person in range(PEOPLE) for _ in range(IMAGES)]
    return FaceSet("patterns", people, lambda index: images[index], names=[f"{n}" for n in range(len(people))])


def recipe(method: str = "partialface", **changes: object) -> Recipe:
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "losses": {"distil": 0.0, "margin": 1.0},
        "head": {"name": "cosface", "options": {"margin": 0.1, "scale": 16}},
    }
    training = {**settings, **changes.pop("training", {})}  # type: ignore[dict-item]
    return Recipe.model_validate(
        {"method": method, "training": training, "precision": "fp32", "warm_start_images": 36, **changes}
    )


def method(name: str = "partialface", seed: int = 0) -> ppfr.Method:
    options = {"training_subsets": 6} if name == "partialface" else {}
    return ppfr.create(name, "mobilefacenet", seed, width=0.125, embedding_size=16, **options)


def losses(run: Run) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [(row["stage"], row["step"], row["loss"]) for row in rows]


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "LOG_EVERY", 1)


def test_training_from_labels_learns(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    settings = recipe("arcface", training={"epochs": 12, "optimizer": {"lr": 5e-3}})
    train(method("arcface"), settings, faces(), run)
    history = [loss for _, _, loss in losses(run)]
    assert np.mean(history[-4:]) < 0.6 * np.mean(history[:4])
    assert run.finished
    assert not run.checkpoint_file.exists()


def test_epochs_may_be_a_fraction(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(method("arcface"), recipe("arcface", training={"epochs": 1.34}), faces(), run)
    assert [step for _, step, _ in losses(run)] == [1, 2, 3, 4]


def test_dropout_follows_its_schedule(tmp_path: Path) -> None:
    schedule = Dropout(start=0.6, decay=0.7, every=5, most=0.95)
    rates = [schedule.rate(epoch) for epoch in (0, 4, 5, 10, 79)]
    assert rates == pytest.approx([0.6, 0.6, 0.6**0.7, 0.6**0.49, 0.95])
    plain, dropped = Run(tmp_path / "plain"), Run(tmp_path / "dropped")
    train(method("arcface"), recipe("arcface"), faces(), plain)
    train(method("arcface"), recipe("arcface", training={"dropout": {"start": 0.5}}), faces(), dropped)
    assert losses(plain)[0][2] != losses(dropped)[0][2]


def test_a_run_folder_tells_what_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(method(), recipe(), faces(), run)
    record = run.read_record()
    assert record["method"] == "partialface"
    assert record["data"] == {"name": "patterns", "images": 24, "people": 4}
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["train_seconds"] > 0
    assert list((run.folder / "tensorboard").iterdir())
    assert ppfr.load(run.folder).info.name == "partialface"


class Stopped(Exception):
    """Stands for a kill at a given step."""


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("partialface", 4),
        pytest.param("duetface", 9, marks=pytest.mark.slow),
        pytest.param("privacyhfr", 9, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stop: int
) -> None:
    """With a checkpoint after every step: killed in the middle of stage 0, or of stage 1, whose head may be carried."""
    settings = recipe(name, checkpoint_minutes=1e-9)
    whole = Run(tmp_path / "whole")
    unbroken = train(method(name), settings, faces(), whole)

    broken = Run(tmp_path / "broken")
    take_step, taken = StageTrainer._step, []

    def failing_step(self: StageTrainer, *arguments: object) -> dict[str, float]:
        taken.append(1)
        if len(taken) == stop:
            raise Stopped
        return take_step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StageTrainer, "_step", failing_step)
    with pytest.raises(Stopped):
        train(method(name), settings, faces(), broken)
    monkeypatch.setattr(StageTrainer, "_step", take_step)
    resumed = train(method(name, seed=99), settings, faces(), broken, resume=True)

    assert losses(broken) == losses(whole)
    mended = resumed.state_dict()
    assert all(torch.equal(value, mended[key]) for key, value in unbroken.state_dict().items())


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(method("arcface"), recipe("arcface"), faces(), run)
    before = run.model_file.read_bytes()
    with pytest.raises(RecipeError, match="already holds a run; add --resume"):
        train(method("arcface"), recipe("arcface"), faces(), run)
    with pytest.raises(RecipeError, match=r"begun with another recipe \(training differ\)"):
        train(method("arcface"), recipe("arcface", training={"epochs": 5}), faces(), run, resume=True)
    other = FaceSet(
        "others", ["a", "b"] * 8, lambda index: np.zeros((len(index), 112, 112, 3), np.uint8), names=["n"] * 16
    )
    with pytest.raises(RecipeError, match="begun with data"):
        train(method("arcface"), recipe("arcface"), other, run, resume=True)
    assert run.model_file.read_bytes() == before


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.save_checkpoint({"step": 1})
    before = run.checkpoint_file.read_bytes()

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.* previous checkpoint is untouched"):
        run.save_checkpoint({"step": 2})
    assert run.checkpoint_file.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoint_file.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        run.load_checkpoint()


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    settings = recipe("arcface", training={"losses": {"distil": 1.0, "margin": 0.0}})
    with pytest.raises(RecipeError, match=r"needs a teacher and losses.margin is 0"):
        train(method("arcface"), settings, faces(), Run(tmp_path / "run"))


def test_an_unknown_stage_is_an_error(tmp_path: Path) -> None:
    settings = recipe("arcface", stages={"sever": {"epochs": 1}})
    with pytest.raises(RecipeError, match=r"stages\.sever: arcface has the stages \['server'\]"):
        train(method("arcface"), settings, faces(), Run(tmp_path / "run"))


def test_secrets_are_in_no_checkpoint_or_record(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    secretive = ppfr.create(
        "partialface", "mobilefacenet", width=0.125, embedding_size=16, table="random", table_seed=987654321
    )
    settings = recipe(options={"table": "random", "table_seed": 987654321})
    train(secretive, settings, faces(), run)
    table = secretive.secrets()["subsets"].to(torch.int64).numpy().tobytes()
    for file in run.folder.rglob("*"):
        if file.is_file() and file != run.folder / SECRETS_FILE:
            content = file.read_bytes()
            assert b"987654321" not in content, file
            assert table not in content, file


def test_distillation_pulls_the_student_to_the_teacher(tmp_path: Path) -> None:
    """A student of another size meets its teacher through a projection and comes nearer."""
    network = build_backbone(
        "mobilefacenet", width=0.125, embedding_size=24, generator=torch.Generator().manual_seed(5)
    )
    teacher = Recogniser(
        name="t",
        sha256="0",
        architecture="mobilefacenet",
        embedding_size=24,
        preprocessing=Preprocessing(),
        network=network.eval(),
    )
    settings = recipe(
        "arcface",
        training={"epochs": 20, "losses": {"distil": 1.0, "margin": 0.0}, "optimizer": {"lr": 5e-3}},
        warm_start=False,
    )
    run = Run(tmp_path / "run")
    train(method("arcface"), settings, faces(), run, teacher=teacher)
    history = [loss for _, _, loss in losses(run)]
    assert np.mean(history[-3:]) < 0.85 * np.mean(history[:3])


# --- parts ---------------------------------------------------------------------------------------------------------


def test_weight_decay_spares_norms_and_biases() -> None:
    """The references pick by the letters `bn` in a name, which IR's norms lack."""
    network = build_backbone("ir18", width=0.125, embedding_size=16)
    optimizer = build_optimizer(network, StageSettings())
    decayed, spared = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert optimizer.param_groups[1]["weight_decay"] == 0
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kernel = isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and name == "weight"
            assert (id(parameter) in decayed) == kernel
            assert (id(parameter) in spared) != kernel


def test_step_schedule_is_the_papers() -> None:
    schedule = Schedule(name="steps", milestones=[10, 18, 22], gamma=0.1)
    factors = [rate_factor(schedule, epoch * 7, 24 * 7, 7) for epoch in (0, 9, 10, 17, 18, 21, 22, 23)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_one_cycle_rises_and_falls() -> None:
    schedule = Schedule(name="one_cycle", warmup=0.25)
    factors = [rate_factor(schedule, step, 100, 10) for step in range(100)]
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) == 25
    assert factors[0] == pytest.approx(0.04)
    assert factors[-1] < 0.01
    assert all(later >= sooner for sooner, later in pairwise(factors[:26]))


def test_a_wild_rate_is_told_before_it_ruins_the_run(tmp_path: Path) -> None:
    settings = recipe("arcface", training={"optimizer": {"name": "sgd", "lr": 1e30}, "clip": None})
    with pytest.raises(RecipeError, match=r"the loss is .* at step .*; lower training\.optimizer\.lr"):
        train(method("arcface"), settings, faces(), Run(tmp_path / "run"))
    assert not (tmp_path / "run" / MODEL_FILE).exists()


def test_a_mixture_is_the_weighted_sum_of_its_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one loss for each person in each image; the trivial mixture is no mixture."""
    settings = recipe("arcface", training={"losses": {"distil": 1.0, "margin": 1.0}})
    targets = torch.nn.functional.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(1)))
    system = method("arcface")
    (stage,) = system.stages()
    trainer = StageTrainer(TrainingJob(system, settings, faces(), Run(tmp_path), targets=targets), stage, 0)
    embedding = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    labels, indices = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 6, 12, 18])
    rows = torch.tensor([[0, 1], [1, 3], [2, 2], [3, 0]])
    weights = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]])

    def step(mixture: Mixture | None) -> dict[str, float]:
        free = embedding.clone().requires_grad_()
        monkeypatch.setattr(stage, "forward", lambda *_: TrainingStep(free, mixture=mixture))
        return trainer._step(0, torch.zeros(4, 3, 112, 112), labels, indices)

    monkeypatch.setattr(trainer.updater.optimizer, "step", lambda: None)
    trivial = Mixture(torch.arange(4)[:, None], torch.ones(4, 1))
    assert step(trivial) == pytest.approx(step(None))
    found = step(Mixture(rows, weights))
    head, cosine = trainer.heads["head"], torch.nn.functional.cosine_similarity
    margin, distil = 0.0, 0.0
    for row in range(4):
        one = embedding[row : row + 1]
        for partner, weight in zip(rows[row].tolist(), weights[row].tolist(), strict=True):
            person = labels[partner : partner + 1]
            margin += weight * float(torch.nn.functional.cross_entropy(head(one, person), person).detach()) / 4
        wanted = sum(w * targets[indices[p]] for p, w in zip(rows[row].tolist(), weights[row].tolist(), strict=True))
        distil += float(1 - cosine(one[0], wanted, dim=0)) / 4
    assert found["loss_margin"] == pytest.approx(margin, rel=1e-5)
    assert found["loss_distil"] == pytest.approx(distil, rel=1e-5)


def test_a_stage_gets_the_sample_it_asks_for(tmp_path: Path) -> None:
    system, sizes = method("arcface"), []
    (stage,) = system.stages()

    def calibrate(images: torch.Tensor, generator: torch.Generator) -> None:
        sizes.append(len(images))
        # a graph of some hundred images takes gigabytes
        assert not torch.is_grad_enabled()

    stage.calibrate, stage.sample = calibrate, 400
    names = [str(n) for n in range(450)]
    big = FaceSet("big", names, lambda index: np.zeros((len(index), 112, 112, 3), np.uint8), names=names)
    for data in (big, faces()):
        trainer = StageTrainer(TrainingJob(system, recipe("arcface"), data, Run(tmp_path)), stage, 0)
        trainer.initialise()
    # a set with fewer gives what it has, as often as the least sample asks
    assert sizes == [400, 144]
