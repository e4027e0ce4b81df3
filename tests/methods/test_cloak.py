"""Cloak: what its noise may be, that size pays in its loss, and which values become constants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.cloak import PixelNoise
from ppfr.util.errors import MethodError


def small(**options: object) -> Method:
    return ppfr.create("cloak", "mobilefacenet", width=0.25, embedding_size=32, **options)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((3, 3, 112, 112), generator=drawn(5)) * 2 - 1


def test_deviations_stay_between_their_bounds() -> None:
    noise = PixelNoise((3, 4, 4), 0.25, 1.5)
    with torch.no_grad():
        noise.rho.copy_(torch.linspace(-20, 20, 48).view(3, 4, 4))
    scales = noise.scales().detach()
    assert float(scales.min()) == pytest.approx(0.25) and float(scales.max()) == pytest.approx(1.5)


def test_noise_has_the_location_and_deviation_learned(images: Tensor) -> None:
    method = small()
    with torch.no_grad():
        method.client.noise.rho.fill_(0.0)
        method.client.noise.location.fill_(0.3)
        added = method.protect(images, drawn(1))["image"] - images
    # 112,896 draws: five standard errors
    assert float(added.mean()) == pytest.approx(0.3, abs=0.012)
    assert float(added.std()) == pytest.approx((1.5 - 0.01) / 2 + 0.01, abs=0.01)


def test_suppressed_values_say_nothing_of_the_image(images: Tensor) -> None:
    method = small(suppressed=0.75)
    client = method.client
    with torch.no_grad():
        client.noise.rho.copy_(torch.randn(3, 112, 112, generator=drawn(2)))
        client.constants.values.fill_(0.7)
    _, _, stage = method.stages()
    assert stage.calibrate is not None
    stage.calibrate(images, drawn())
    kept = client.constants.kept
    assert int((~kept).sum()) == round(0.75 * 3 * 112 * 112)
    assert float(client.noise.rho.detach()[kept].max()) <= float(client.noise.rho.detach()[~kept].min())
    with torch.no_grad():
        sent = method.protect(images, drawn(1))["image"]
    assert bool((sent[:, ~kept] == 0.7).all())
    assert method.remarks()[0].startswith("trade-off 0.5: 75% of the values are constants")


def test_larger_noise_pays_by_the_trade_off(images: Tensor) -> None:
    def term(trade_off: float, rho: float) -> float:
        method = small(trade_off=trade_off)
        with torch.no_grad():
            method.client.noise.rho.fill_(rho)
        return float(method.stages()[1].forward(images, torch.arange(3), drawn()).losses["noise"].detach())

    assert term(1.0, 1.0) < term(1.0, 0.0) < term(1.0, -1.0)
    assert term(2.0, 0.0) == pytest.approx(2 * term(1.0, 0.0))


def test_only_the_client_learns_behind_a_frozen_recogniser(images: Tensor) -> None:
    method = small()
    recogniser, noise, constants = method.stages()
    assert recogniser.module is method.server.backbone
    assert {id(p) for p in noise.module.parameters()} == {id(p) for p in method.client.noise.parameters()}
    assert [name for name, _ in constants.module.named_parameters()] == ["values"]
    noise.forward(images, torch.arange(3), drawn()).embedding.square().sum().backward()
    assert float(method.client.noise.rho.grad.abs().max()) > 0


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(MethodError, match=r"min_scale 2 is not below max_scale 1\.5"):
        small(min_scale=2)
