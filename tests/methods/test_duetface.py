"""DuetFace's fusion and region against recorded numbers, and what may and may not cross to the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ppfr
from ppfr.methods.duetface import (
    CLIENT_FREQUENCIES,
    MAPS,
    SERVER_FREQUENCIES,
    InteractiveFusion,
    attention_map,
    unit_range,
)
from ppfr.transforms.roi import canonical_mask, hull_mask
from ppfr.util.errors import MethodError, ShapeError


def small(**options: object) -> ppfr.Method:
    return ppfr.create("duetface", "mobilefacenet", width=0.25, embedding_size=32, **options)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand((count, 3, 112, 112), generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("suffix", ["", "_no_roi"])
def test_fusion_is_the_recorded_one(golden: Callable[[str], Any], suffix: str) -> None:
    """The reference's random convolution, averaged over its outputs, is one projection: ours."""
    recorded = golden("duetface_interactive.npz")
    main = torch.from_numpy(recorded["main"])
    weight = torch.from_numpy(recorded[f"conv_weight{suffix}"]).mean(0, keepdim=True)
    bias = torch.from_numpy(recorded[f"conv_bias{suffix}"]).mean()
    projected = F.conv2d(torch.from_numpy(recorded["embedding"]), weight) + bias
    region = None if suffix else torch.from_numpy(recorded["roi"]).float()
    fusion = InteractiveFusion(main.shape[1])
    fusion.gate.data.fill_(float(recorded["gate"][0]))
    found = fusion(main, attention_map(projected, (14, 14), region))
    assert torch.allclose(found, torch.from_numpy(recorded[f"output{suffix}"]), atol=1e-4)


def test_hull_is_the_recorded_one(golden: Callable[[str], Any]) -> None:
    recorded = golden("duetface_interactive.npz")
    mask = hull_mask(torch.from_numpy(recorded["landmarks"]) * 112, (112, 112))
    assert np.array_equal(mask.numpy().astype(np.uint8), recorded["hull_mask"])


def test_the_split_is_the_recorded_one(golden: Callable[[str], Any]) -> None:
    recorded = golden("duetface_split.npz")
    assert recorded["sub_channels"].tolist() == list(CLIENT_FREQUENCIES)
    method = small()
    batch = torch.from_numpy(recorded["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    channels = method.protect(batch)["channels"]
    place = torch.from_numpy(recorded["main_pos"]).long()
    found = channels[place[:, 0], place[:, 1], place[:, 2], place[:, 3]]
    frequency = torch.tensor(SERVER_FREQUENCIES)[place[:, 1] % 54]
    tolerance = torch.from_numpy(recorded["frequency_atol"])[frequency]
    assert bool(((found - torch.from_numpy(recorded["main"])).abs() <= tolerance).all())


def test_linearised_fusion_changes_little_and_plain_fusion_much() -> None:
    features = torch.randn((8, 6, 14, 14), generator=torch.Generator().manual_seed(0)) * 5
    nothing = torch.zeros(8, 1, 14, 14)
    fusion = InteractiveFusion(6)
    with torch.no_grad():
        plain = fusion(features, nothing)
        fusion.linearise(features)
        linear = fusion(features, nothing)
    assert float((linear - features).square().mean() / features.square().mean()) < 0.01
    assert float((plain - features).square().mean() / features.square().mean()) > 0.5


def test_maps_are_zero_outside_the_region_and_reach_one_inside() -> None:
    with torch.no_grad():
        payload = small().protect(images())
    for name, size in zip(MAPS, (56, 28, 14, 7), strict=True):
        found = payload[name]
        assert found.shape == (2, 1, size, size)
        assert float(found.min()) == 0.0
        assert float(found.max()) == pytest.approx(1.0)
    assert float(payload["map0"][..., 0, :].abs().max()) == 0.0


def test_an_empty_hull_falls_back_to_the_canonical_one() -> None:
    method = small(roi="landmarks")
    client = method.client
    client.landmarker_filled.fill_(True)

    class OneLine(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            line = torch.linspace(0.2, 0.8, 98)
            return torch.stack([line, line], 1).expand(len(batch), -1, -1)

    client.landmarker = OneLine()
    assert torch.equal(client.region(images(2)), canonical_mask((112, 112)).expand(2, -1, -1, -1))


def test_landmarks_without_a_trained_network_are_refused() -> None:
    with pytest.raises(MethodError, match="needs a trained landmark network"):
        small(roi="landmarks").protect(images())


def test_a_constant_map_becomes_zero() -> None:
    assert torch.equal(unit_range(torch.full((1, 1, 3, 3), 0.4)), torch.zeros(1, 1, 3, 3))


def test_a_client_that_is_no_mobilefacenet_is_refused() -> None:
    with pytest.raises(MethodError, match="client_backbone is 'ir18'; expected a MobileFaceNet"):
        small(client_backbone="ir18")


def test_hull_masks_need_points() -> None:
    with pytest.raises(ShapeError, match=r"expected \(B, N, 2\) with at least 3 points"):
        hull_mask(torch.zeros(1, 2, 2), (8, 8))
    square = torch.tensor([[[1.0, 1.0], [4.0, 1.0], [4.0, 4.0], [1.0, 4.0], [2.0, 2.0]]])
    assert int(hull_mask(square, (8, 8)).sum()) == 16
