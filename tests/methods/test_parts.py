"""What servers share: scales measured part by part are those of the whole sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods.common import parts
from ppfr.methods.common.parts import InputScale, split_for_memory

SMALL = {"width": 0.125, "embedding_size": 16}


def smooth(count: int) -> Tensor:
    noise = torch.rand((count, 3, 14, 14), generator=torch.Generator().manual_seed(3)) * 2 - 1
    return torch.nn.functional.interpolate(noise, (112, 112), mode="bicubic").clamp(-1, 1)


def test_a_scale_is_one_over_the_root_mean_square_of_all_parts() -> None:
    features = (
        torch.randn((7, 3, 4, 5), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    plain = features.double().square().mean(dim=(0, 2, 3)).rsqrt().float()
    scale = InputScale(3)
    scale.calibrate(features)
    assert torch.allclose(scale.scale, plain, rtol=1e-5)
    scale.scale.fill_(1.0)
    # parts of unequal size: each image counts alike
    scale.calibrate_in_parts(torch.split(features, 3))
    assert torch.allclose(scale.scale, plain, rtol=1e-5)


def test_wide_payloads_come_in_parts_and_narrow_ones_whole() -> None:
    images = torch.zeros(1, 3, 112, 112).expand(144, -1, -1, -1)
    assert [len(part) for part in split_for_memory(images, 3)] == [144]
    wide = split_for_memory(images, 192)
    assert sum(map(len, wide)) == 144
    assert max(map(len, wide)) * 192 * 112 * 112 * 4 <= 128 << 20 < (len(wide[0]) + 1) * 192 * 112 * 112 * 4
    assert [len(part) for part in split_for_memory(images[:2], 10**6)] == [1, 1]


@pytest.mark.parametrize("name", ["arcface-fd", "dctdp", "duetface"])
def test_a_stage_measures_the_same_scale_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws included: a generator gives parts the noise that it gives the whole."""
    images, scales = smooth(5), []
    for most in (1 << 40, 20 << 20):
        monkeypatch.setattr(parts, "_PART_BYTES", most)
        assert len(split_for_memory(images, 162)) == (1 if most == 1 << 40 else 3)
        method = ppfr.create(name, "mobilefacenet", **SMALL)
        stage = method.stages()[-1]
        assert stage.calibrate is not None
        with torch.no_grad():
            stage.calibrate(images, torch.Generator().manual_seed(1))
        scales.append(method.server.scale.scale.clone())
    assert scales[0].unique().numel() > 100
    # a norm over a million values in float32 is no more exact
    assert torch.allclose(scales[0], scales[1], rtol=1e-3)
