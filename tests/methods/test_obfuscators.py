"""Obfuscators: the recorded images, what the settings mean, and that the recogniser behind them knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.obfuscators import STRENGTHS, Obfuscators
from ppfr.transforms.quantise import from_levels
from ppfr.util.errors import MethodError

KINDS = list(STRENGTHS)


def small(**options: object) -> Method:
    return ppfr.create("obfuscators", "mobilefacenet", width=0.25, embedding_size=32, **options)


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand((2, 3, 14, 14), generator=torch.Generator().manual_seed(5)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=112, mode="bilinear")
    return (smooth * 127.5).round() / 127.5


@pytest.mark.parametrize("kind", ["gaussian", "median"])
def test_payloads_are_the_recorded_images(kind: str, golden: Callable[[str], Any]) -> None:
    recorded = golden("obfuscators.npz")
    images = torch.from_numpy(recorded["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    sent = small(kind=kind).protect(images)["image"]
    place = torch.from_numpy(recorded["ipos"]).long().T
    found = from_levels(sent)[tuple(place)]
    assert float((found - torch.from_numpy(recorded[kind])).abs().max()) <= 0.5 / 127.5 + 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_takes_more_away(kind: str, images: Tensor) -> None:
    def lost(strength: float) -> float:
        return float(
            (from_levels(small(kind=kind, strength=strength).protect(images)["image"]) - images).square().mean()
        )

    first, default, last = {
        "gaussian": (2, 5, 12), "median": (5, 13, 25), "pixelate": (3, 7, 14), "black-box": (0.5, 1, 2),
        "downscale": (3, 7, 14),
    }[kind]  # fmt: skip
    assert STRENGTHS[kind] == default
    assert lost(first) < lost(default) < lost(last)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_is_rounded(kind: str, images: Tensor) -> None:
    method = small(kind=kind)
    (client,) = method.hypotheses()
    before = client.apply(images)["image"]
    assert bool(((before - method.protect(images)["image"].float()).abs() <= 0.5 + 1e-3).all())


def test_kind_and_strength_may_change_after_training(images: Tensor) -> None:
    method = small()
    other = method.with_options(kind="black-box", strength=2)
    assert isinstance(other, Obfuscators) and other.strength == 2
    assert other.server.state_dict().keys() == method.server.state_dict().keys()
    assert "black-box of strength 2; recogniser trained on clear images" in other.remarks()
    assert int(other.protect(images)["image"][0, 0, 52, 56]) == 0


def test_the_recogniser_learns_from_what_the_option_says(images: Tensor) -> None:
    def seen(train_on: str) -> Tensor:
        (stage,) = small(train_on=train_on).stages()
        assert stage.trunk_input is not None
        return stage.trunk_input(images, torch.Generator()).features

    assert torch.allclose(seen("clear"), images, atol=1e-6)
    assert float((seen("obfuscated") - images).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "median", "strength": 12}, "strength 12 of median: expected an odd number"),
        ({"kind": "pixelate", "strength": 6.5}, r"strength 6\.5 of pixelate: expected whole pixels"),
        ({"strength": -1}, r"strength: .*greater than 0"),
        ({"kind": "swirl"}, "kind: Input should be 'gaussian'"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        small(**options)
