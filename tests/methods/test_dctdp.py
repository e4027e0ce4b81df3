"""DCTDP against the numbers of the authors' code, and what its privacy budget promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.dctdp import FREQUENCIES, LaplaceNoise, noiseless, ranges
from ppfr.recipes.recipe import StageSettings
from ppfr.training.optimizer import build_optimizer
from ppfr.util.errors import MethodError
from support.reference import rule

SHAPE = (189, 112, 112)


def small(**options: object) -> Method:
    return ppfr.create("dctdp", "mobilefacenet", width=0.25, embedding_size=32, **options)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((3, 3, 112, 112), generator=torch.Generator().manual_seed(5)) * 2 - 1


def ruled(name: str) -> Tensor:
    return torch.as_tensor(rule(name, 189 * 112 * 112)).float().view(SHAPE)


def recorded_images(recorded: Any) -> Tensor:
    return torch.from_numpy(recorded["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1


def within(found: Tensor, wanted: Any, positions: Any, recorded: Any) -> bool:
    """Whether values at positions (image, channel, y, x) agree to the tolerance of the frequency behind the channel."""
    place = torch.from_numpy(positions).long()
    tolerance = torch.from_numpy(recorded["frequency_atol"])[torch.tensor(FREQUENCIES)[place[:, 1] % 63]]
    return bool(((found[tuple(place.T)] - torch.from_numpy(wanted)).abs() <= tolerance).all())


def test_channels_are_the_recorded_ones(golden: Callable[[str], Any]) -> None:
    recorded = golden("dctdp.npz")
    assert within(noiseless(recorded_images(recorded)), recorded["dct"], recorded["pos"], recorded)


def test_scales_are_the_recorded_ones(golden: Callable[[str], Any]) -> None:
    recorded = golden("dctdp.npz")
    place = tuple(torch.from_numpy(recorded["scale_pos"]).long().T)
    for case, (name, amplitude, budget) in enumerate(
        zip(recorded["rhos_names"], recorded["rhos_amp"], recorded["budget_mean"], strict=True)
    ):
        noise = LaplaceNoise(SHAPE, float(budget))
        with torch.no_grad():
            noise.rho.copy_(float(amplitude) * ruled(str(name)))
            if case == 1:
                noise.sensitivity.copy_((1 + 0.5 * ruled("sensitivity")) * 100)
        assert torch.allclose(noise.rho[place], torch.from_numpy(recorded["rhos_check"][case]), atol=1e-6)
        assert torch.allclose(noise.scales()[place], torch.from_numpy(recorded["scales"][case]), rtol=1e-4)
        assert -float(noise.scales().detach().mean().log()) == pytest.approx(recorded["aux_loss"][case], abs=1e-4)


def test_noisy_channels_are_the_recorded_ones(golden: Callable[[str], Any]) -> None:
    recorded = golden("dctdp.npz")
    noise = LaplaceNoise(SHAPE, float(recorded["budget_mean"][0]))
    name = str(recorded["rhos_names"][0])
    with torch.no_grad():
        noise.rho.copy_(float(recorded["rhos_amp"][0]) * ruled(name))
        noise.location.fill_(float(recorded["locs_value"][0]))
        found = noise(noiseless(recorded_images(recorded)), ruled(f"{name}-eps"))
    assert within(found, recorded["noisy"], recorded["noisy_pos"], recorded)


def test_without_noise_it_is_arcface_fd_without_dc(images: Tensor) -> None:
    channels = ppfr.create("arcface-fd", "mobilefacenet", width=0.25).protect(images)["channels"]
    kept = [channel for channel in range(192) if channel % 64]
    method = small(epsilon="inf")
    assert torch.equal(method.protect(images)["channels"], channels[:, kept])
    assert len(method.hypotheses()) == 1
    assert method.remarks()[0].startswith("epsilon is infinite")


def test_an_infinite_budget_survives_a_file(images: Tensor, tmp_path) -> None:
    method = small(epsilon="inf")
    ppfr.save(method, tmp_path)
    assert torch.equal(ppfr.load(tmp_path).protect(images)["channels"], method.protect(images)["channels"])


def test_every_image_has_noise_of_its_own(images: Tensor) -> None:
    twice = images[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = small().protect(twice, torch.Generator().manual_seed(0))["channels"] - noiseless(twice)
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.01


def test_the_budget_is_kept_however_it_is_split(images: Tensor) -> None:
    """Sensitivity over scale is an element's epsilon; their sum is the budget whatever was learned."""
    noise = LaplaceNoise((7, 5), 3.0)
    with torch.no_grad():
        noise.rho.normal_(generator=torch.Generator().manual_seed(2))
        noise.sensitivity.uniform_(1, 9, generator=torch.Generator().manual_seed(3))
    assert float((noise.sensitivity / noise.scales()).sum()) == pytest.approx(3.0 * 35, rel=1e-5)


def test_calibration_measures_the_ranges(images: Tensor) -> None:
    method = small()
    (stage,) = method.stages()
    assert stage.calibrate is not None and stage.sample == 768
    stage.calibrate(images, torch.Generator().manual_seed(0))
    channels = torch.cat([noiseless(image[None]) for image in images])
    assert torch.allclose(method.client.sensitivity, channels.amax(0) - channels.amin(0), atol=1e-3)
    assert torch.equal(ranges(images), method.client.sensitivity)
    reference = small(sensitivity="reference")
    reference.stages()[0].calibrate(images, torch.Generator().manual_seed(0))
    assert bool((reference.client.sensitivity == 1).all())


def test_locations_count_sensitivities(images: Tensor) -> None:
    """A step of one size then moves a coefficient that hardly varies as little as its range, and a wide one more."""
    noise = LaplaceNoise((2,), 1.0)
    with torch.no_grad():
        noise.sensitivity.copy_(torch.tensor([0.5, 200.0]))
        noise.location.fill_(0.1)
        assert torch.allclose(noise(torch.ones(2), torch.zeros(2)), torch.tensor([1.05, 21.0]))


def test_budgets_alone_learn_at_the_rate_of_noise() -> None:
    (stage,) = small(noise_rate=40).stages()
    groups = build_optimizer(torch.nn.ModuleDict({"stage": stage.module}), StageSettings(), {"stage.noise.rho": 40.0})
    assert stage.rate_scales == {"noise.rho": 40}
    client = stage.module.get_submodule("noise")
    for name, expected in (("rho", 40), ("location", 1)):
        (scale,) = [
            group["scale"]
            for group in groups.param_groups
            if any(parameter is client.get_parameter(name) for parameter in group["params"])
        ]
        assert scale == expected


def test_noise_learns_from_recognition(images: Tensor) -> None:
    method = small()
    (stage,) = method.stages()
    stage.forward(images, torch.arange(3), torch.Generator().manual_seed(0)).embedding.square().sum().backward()
    for parameter in (method.client.rho, method.client.location):
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0


def test_the_budget_is_reported() -> None:
    assert small(epsilon=0.5).remarks()[0].startswith("mean epsilon 0.5 a coefficient, 1.19e+06 in sum for an image")


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(MethodError, match=r"epsilon: .*greater than 0"):
        small(epsilon=0)
