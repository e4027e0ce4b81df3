"""MinusFace: golden shuffles, what the generator starts as, and stages that can begin with another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.data.faceset import FaceSet
from ppfr.methods import Method
from ppfr.methods.common.files import load_method
from ppfr.methods.common.parts import InputScale
from ppfr.methods.minusface import CHANNELS, DC, ResidueClient, all_channels, decode_shuffled, inverse
from ppfr.recipes.recipe import Recipe, StageSettings
from ppfr.training import start as start_module
from ppfr.training.job import TrainingJob
from ppfr.training.loop import train
from ppfr.training.optimizer import build_optimizer
from ppfr.training.run import Run
from ppfr.training.trainer import StageTrainer
from ppfr.transforms import inverse_block_dct
from ppfr.util.errors import CheckpointError, MethodError, RecipeError


def minusface(seed: int = 0, **options: Any) -> Method:
    options = {"generator_width": 0.125, **options}
    return ppfr.create("minusface", "mobilefacenet", seed, width=0.125, embedding_size=16, **options)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int = 2) -> Tensor:
    noise = torch.rand((count, 3, 14, 14), generator=drawn(3)) * 2 - 1
    return torch.nn.functional.interpolate(noise, (112, 112), mode="bicubic").clamp(-1, 1)


def test_shuffled_residues_decode_as_the_reference_does(golden: Callable[[str], Any]) -> None:
    known = golden("minusface_shuffle.npz")
    residue = torch.randint(-10000, 10001, (1, CHANNELS, 112, 112), generator=drawn(int(known["generator_seed"][0])))
    residue = residue.float() / 200
    at = known["check_pos"].T
    assert np.array_equal(residue.numpy()[tuple(at)], known["check"])
    decoded = decode_shuffled(residue, torch.from_numpy(known["permutation"].astype(np.int64))[None])
    assert np.abs(decoded.numpy()[tuple(known["ipos"].T)] - known["shuffled_image"]).max() < 5e-4


def test_every_shuffle_of_every_image_is_its_own() -> None:
    method = minusface(duplicates=2)
    payload = method.protect(smooth(1).repeat(3, 1, 1, 1), drawn())["images"]
    assert payload.shape == (3, 6, 112, 112)
    views = payload.unflatten(1, (2, 3)).flatten(0, 1)
    for first in range(6):
        for second in range(first):
            assert not torch.allclose(views[first], views[second], atol=1e-3)


def test_images_decode_alike_in_chunks_and_together() -> None:
    """Without gradients few images are decoded at a time; with gradients all at once."""
    method = minusface(duplicates=2)
    images = smooth(5)
    with torch.no_grad():
        chunked = method.protect(images, drawn())["images"]
    together = method.protect(images, drawn())["images"]
    assert torch.allclose(chunked, together, atol=1e-5)


def test_the_generator_starts_as_a_copy_of_the_dc_channels() -> None:
    method = minusface()
    method.client.calibrate(smooth(4))
    coefficients = all_channels(smooth(2))
    made = method.client.generate(coefficients)
    others = [channel for channel in range(CHANNELS) if channel not in DC]
    assert torch.allclose(made[:, list(DC)], coefficients[:, list(DC)], rtol=1e-4, atol=1e-2)
    assert made[:, others].abs().max() == 0
    wrong = (inverse(made) * 2 - 1 - smooth(2)).abs().mean()
    assert wrong < 0.1 * smooth(2).abs().mean()


def test_the_folded_scaling_equals_the_plain_one() -> None:
    method = minusface()
    method.client.calibrate(smooth(4))
    coefficients = all_channels(smooth(2))
    plain = method.client.generator(method.client.scale(coefficients)) / method.client.scale.scale[:, None, None]
    assert torch.allclose(method.client.generate(coefficients), plain, rtol=1e-4, atol=1e-3)


def test_residues_made_a_few_at_a_time_equal_those_made_together() -> None:
    method, scale = minusface(), InputScale(CHANNELS)
    images = smooth(5)
    method.client.calibrate(images)
    with torch.no_grad():
        together = method.client(images)
        scale.calibrate(together)
        plain = scale(together)
    assert torch.allclose(method.client.scaled_residues(images, scale), plain, rtol=1e-4, atol=1e-4)


def test_a_start_sees_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """192 channels of an image are 10 MB: residues of a whole sample, with gradients, once took 7 GB."""
    seen: list[tuple[int, bool]] = []
    plain = ResidueClient.forward

    def watched(self: ResidueClient, images: Tensor) -> Tensor:
        seen.append((len(images), torch.is_grad_enabled()))
        return plain(self, images)

    monkeypatch.setattr(ResidueClient, "forward", watched)
    monkeypatch.setattr(start_module, "_LEAST_SAMPLE", 12)
    method, run = minusface(), Run(tmp_path / "run")
    for index, stage in enumerate(method.stages()):
        StageTrainer(TrainingJob(method, recipe(), faces(), run), stage, index).initialise()
        assert sum(count for count, _ in seen) >= 12
        assert max(count for count, _ in seen) <= 2 and not any(grad for _, grad in seen)
        seen.clear()


def test_the_generator_learns_ten_times_slower() -> None:
    stage = minusface().stages()[0]
    optimizer = build_optimizer(torch.nn.ModuleDict({"stage": stage.module}), StageSettings(), {"stage.generator": 0.1})
    slow = {id(parameter) for parameter in stage.module["generator"].parameters()}
    for group in optimizer.param_groups:
        assert {group["scale"]} == ({0.1} if id(group["params"][0]) in slow else {1.0})
        assert len({id(parameter) in slow for parameter in group["params"]}) == 1
    assert dict(stage.rate_scales) == {"generator": 0.1}


def test_sparsity_is_a_loss_when_asked_for() -> None:
    images, labels = smooth(2), torch.tensor([0, 1])
    method = minusface(sparsity_weight=1e-3)
    losses = method.stages()[0].forward(images, labels, drawn()).losses
    assert losses["sparsity"] > 0
    assert "sparsity" not in minusface().stages()[0].forward(images, labels, drawn()).losses


def test_channels_and_options_are_checked() -> None:
    with pytest.raises(MethodError, match=r"duplicates: Input should be greater than or equal to 1"):
        minusface(duplicates=0)


# --- training ------------------------------------------------------------------------------------------------------


def faces() -> FaceSet:
    rng = np.random.default_rng(0)
    patterns = np.repeat(np.repeat(rng.integers(40, 216, (3, 14, 14, 3)), 8, axis=1), 8, axis=2)
    images = np.concatenate([pattern[None] + rng.integers(-30, 30, (4, 112, 112, 3)) for pattern in patterns])
    images = images.clip(0, 255).astype(np.uint8)
    people = [str(person) for person in range(3) for _ in range(4)]
    return FaceSet("patterns", people, lambda index: images[index], names=[f"{n}" for n in range(12)])


def recipe(**changes: Any) -> Recipe:
    # Adam would turn a rounding error in a gradient near zero into a whole step
    training = {"epochs": 1, "batch_size": 6, "losses": {"margin": 1.0}, "optimizer": {"name": "sgd", "lr": 0.01}}
    values = {"method": "minusface", "training": training, "precision": "fp32", "warm_start_images": 36}
    return Recipe.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def generator_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "generator"
    train(minusface(), recipe(only_stages=["generator"]), faces(), Run(folder))
    return folder


@pytest.mark.slow
def test_a_stage_that_starts_from_a_run_equals_one_long_run(generator_run: Path, tmp_path: Path) -> None:
    whole = train(minusface(), recipe(), faces(), Run(tmp_path / "whole")).state_dict()
    second = recipe(start_from=str(generator_run), only_stages=["recogniser"])
    parts = train(minusface(seed=0), second, faces(), Run(tmp_path / "second")).state_dict()
    # the same steps, but for the memory layout of the weights that the second run begins with
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-2, atol=1e-3) for name in whole)
    stages = json.loads((tmp_path / "second" / "run.json").read_text())["stages"]
    assert stages["generator"]["from"] == str(generator_run)


def test_the_second_stage_leaves_the_generator_alone(generator_run: Path, tmp_path: Path) -> None:
    before = load_method(generator_run, partial=True).client.state_dict()
    second = recipe(start_from=str(generator_run), only_stages=["recogniser"])
    after = train(minusface(), second, faces(), Run(tmp_path / "second")).client.state_dict()
    fresh = minusface().client.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(fresh[name], after[name]) for name in fresh)


def test_a_run_without_its_last_stage_is_not_taken_for_a_recogniser(generator_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"stages \['recogniser'\] were not trained .* start_from="):
        ppfr.load(generator_run)


def test_a_wrong_or_missing_first_run_is_an_error(generator_run: Path, tmp_path: Path) -> None:
    def second(run: Path, method: Method) -> None:
        settings = recipe(start_from=str(run), only_stages=["recogniser"])
        train(method, settings, faces(), Run(tmp_path / "second"))

    with pytest.raises(CheckpointError, match=r"nowhere does not exist; give a run folder"):
        second(tmp_path / "nowhere", minusface())
    with pytest.raises(RecipeError, match=r"other shapes or are absent; use the backbone and options of that run"):
        second(generator_run, minusface(generator_width=0.25))
    ppfr.save(minusface(), tmp_path / "untrained")
    (tmp_path / "untrained" / "run.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"stage 'generator' was not trained there"):
        second(tmp_path / "untrained", minusface())
    ppfr.save(ppfr.create("arcface", "mobilefacenet", width=0.125, embedding_size=16), tmp_path / "arcface")
    with pytest.raises(CheckpointError, match=r"holds a 'arcface' model; expected 'minusface'"):
        second(tmp_path / "arcface", minusface())
    with pytest.raises(RecipeError, match=r"builds on \['generator'\]; give the run that trained them as start_from"):
        train(minusface(), recipe(only_stages=["recogniser"]), faces(), Run(tmp_path / "second"))


def test_weakened_it_sends_the_residue_itself() -> None:
    method = ppfr.create("minusface", "mobilefacenet", generator_width=0.125, width=0.125, embedding_size=8)
    images = 2 * torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 1
    weak = method.weakened()
    assert weak is not None
    with torch.no_grad():
        sent, residue = weak.apply(images)["images"], method.client(images)
    expected = inverse_block_dct(residue.view(2, 3, 64, 112, 112))
    assert torch.allclose(sent, expected, atol=1e-5)
