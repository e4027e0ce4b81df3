"""Template protection: slerp against its definition, dropout by group, and revocation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppfr.transforms.template import TemplateKey, protect_template, slerp
from ppfr.util.errors import ShapeError


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(count: int, size: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn((count, size), generator=drawn(seed), dtype=torch.float64))


@given(share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_slerp_divides_the_angle(share: float, seed: int) -> None:
    start, end = units(4, 16, seed), units(1, 16, seed + 1)[0]
    between = slerp(start, end, share)
    whole, first = torch.acos(start @ end), torch.acos((start * between).sum(1).clamp(-1, 1))
    assert torch.allclose(between.norm(dim=1), torch.ones(4).double())
    assert torch.allclose(first, share * whole, atol=1e-6)
    # and stays on the great circle: what is left of the angle lies on the other side
    assert torch.allclose(first + torch.acos((between @ end).clamp(-1, 1)), whole, atol=1e-6)


@given(size=st.integers(8, 300), groups=st.integers(1, 8), dropped=st.floats(0, 0.95), seed=st.integers(0, 2**31))
def test_every_group_loses_its_share(size: int, groups: int, dropped: float, seed: int) -> None:
    key = TemplateKey.draw(size, drawn(seed), groups=groups, dropped=dropped)
    sizes = [len(part) for part in torch.arange(size).tensor_split(groups)]
    assert int((~key.kept).sum()) == sum(int(dropped * length) for length in sizes)
    assert float(key.noise.norm()) == pytest.approx(1, abs=1e-5)


def test_dropped_dimensions_are_gone_for_good() -> None:
    key = TemplateKey.draw(32, drawn(1), dropped=0.5)
    first = units(1, 32).float()
    template = protect_template(first, key, 0.5)
    assert bool((template[:, ~key.kept] == 0).all()) and float(template.norm()) == pytest.approx(1, abs=1e-5)
    # with no rotation, embeddings that differ there alone cannot be told apart but for their length
    other = torch.where(key.kept, first, -first)
    assert torch.allclose(protect_template(first, key, 0.0), protect_template(other, key, 0.0), atol=1e-6)


def test_one_key_keeps_the_order_and_another_revokes() -> None:
    people = units(200, 128).float()
    again = F.normalize(people + 0.5 * units(200, 128, 9).float())
    key, other = (TemplateKey.draw(128, drawn(seed)) for seed in (1, 2))
    enrolled, probes, revoked = (
        protect_template(faces, which, 0.7) for faces, which in ((people, key), (again, key), (again, other))
    )
    assert bool(((probes @ enrolled.T).argmax(1) == torch.arange(200)).all())
    # under another key the same face is as far as anyone's
    same, crossed = (revoked * enrolled).sum(1), (revoked @ enrolled.T)[~torch.eye(200, dtype=torch.bool)]
    assert float(same.mean() - crossed.mean()) < 0.25 * float((probes * enrolled).sum(1).mean())
    assert float(same.max()) < float((probes * enrolled).sum(1).min())


def test_without_rotation_and_dropout_it_is_the_unit_embedding() -> None:
    key = TemplateKey.draw(16, drawn(), groups=4, dropped=0)
    first = units(3, 16).float()
    assert torch.allclose(protect_template(5 * first, key, 0.0), first, atol=1e-6)


def test_the_noise_itself_stays_finite() -> None:
    key = TemplateKey.draw(16, drawn(), dropped=0)
    both = torch.stack([key.noise, -key.noise])
    assert bool(torch.isfinite(protect_template(both, key, 0.5)).all())
    assert torch.allclose(protect_template(both, key, 0.5)[0], key.noise, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"groups": 17}, r"groups is 17; expected 1\.\.16"), ({"dropped": 1.0}, r"dropped is 1\.0; expected a share")],
)
def test_impossible_keys_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        TemplateKey.draw(16, drawn(), **settings)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"slerp of \(3, 16\) towards \(8,\)"):
        protect_template(units(3, 16).float(), TemplateKey.draw(8, drawn()), 0.5)
