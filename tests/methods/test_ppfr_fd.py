"""PPFR-FD: what the analysis learns to drop, and what the mask does to the channels that are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.methods.ppfr_fd import ChannelGates, all_channels
from ppfr.util.errors import MethodError

COUNT = 12


def small(**options: object) -> Method:
    settings = {"channels": COUNT, **options}
    return ppfr.create("ppfr-fd", "mobilefacenet", width=0.25, embedding_size=32, **settings)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((3, 3, 112, 112), generator=drawn(5)) * 2 - 1


def test_the_mask_is_what_it_says(images: Tensor) -> None:
    """Channel by channel, slowly."""
    method = small()
    client = method.client
    client.calibrate(torch.arange(5, 5 + 3 * COUNT, 3), images)
    sent = method.protect(images)["channels"]
    channels = all_channels(images)
    order, weights = method.secrets()["order"].tolist(), method.secrets()["weights"].tolist()
    for row in range(len(images)):
        chosen = [channels[row, int(client.kept[place])] * client.scale.scale[place] for place in order]
        for at in range(COUNT):
            mixed = weights[at] * chosen[at] + (1 - weights[at]) * chosen[(at + 1) % COUNT]
            assert torch.allclose(sent[row, at], (mixed - mixed.mean()) / mixed.std(), atol=1e-3)


def test_only_chosen_channels_are_looked_at(images: Tensor) -> None:
    client = small().client
    kept = torch.tensor([1, 2, 9, 66, 67, 70, 100, 129, 130, 140, 150, 191])
    client.calibrate(kept, images)
    assert torch.allclose(client.select(images), all_channels(images)[:, kept], atol=1e-4)


def test_gates_are_drawn_as_likely_as_they_say() -> None:
    gates = ChannelGates()
    with torch.no_grad():
        gates.logit.copy_(torch.linspace(-3, 3, 192))
        found = gates(6000, drawn(1))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    # five standard errors of a share of 6,000
    assert float((found.mean(0) - torch.sigmoid(gates.logit.detach())).abs().max()) < 0.033


def test_weak_channels_are_never_chosen() -> None:
    gates = ChannelGates()
    gates.measure(torch.arange(192.0), 50)
    with torch.no_grad():
        gates.logit[:142] = 9.0
    assert int(gates.choose(50).min()) == 142
    assert float(gates(100, drawn()).detach()[:, :142].abs().max()) == 0
    assert float(gates.visibility.sum()) == pytest.approx(1)


def test_the_analysis_drops_what_shows_and_is_not_needed(images: Tensor) -> None:
    """Recognition loss stands in for: channel 70 must be there. Visibility: channel 0 shows most."""
    gates = ChannelGates()
    energy = torch.full((192,), 1.0)
    energy[0], energy[70] = 1e4, 1e4
    gates.measure(energy, 192)
    optimizer, generator = torch.optim.Adam(gates.parameters(), lr=0.1), drawn(2)
    for _ in range(60):
        optimizer.zero_grad()
        missing = (1 - gates(64, generator)[:, 70]).mean()
        (missing + 2.0 * gates.penalty()).backward()
        optimizer.step()
    likely = gates.probabilities().detach()
    assert float(likely[70]) > 0.8 > 0.3 > float(likely[0])


def test_the_server_stage_takes_the_analysis_choice(images: Tensor) -> None:
    method = small(candidates=40)
    analysis, server = method.stages()
    assert analysis.calibrate is not None and server.calibrate is not None
    analysis.calibrate(images, drawn())
    with torch.no_grad():
        method.gates.logit[:64] = -5.0
    server.calibrate(images, drawn())
    assert method.client.kept.tolist() == method.gates.choose(COUNT).tolist()
    share = float(method.client.shown.detach())
    assert 0 < share < 1
    assert method.remarks()[0].startswith(f"12 of 192 channels travel, with {share:.1%}")


def test_the_analysis_has_gradients(images: Tensor) -> None:
    method = small()
    analysis, _ = method.stages()
    analysis.forward(images, torch.arange(3), drawn()).embedding.square().sum().backward()
    assert float(method.gates.logit.grad.abs().max()) > 0


def test_wrong_secrets_and_settings_are_refused() -> None:
    method = small()
    secrets = method.secrets()
    with pytest.raises(MethodError, match=r"needs the secrets \['order', 'weights'\]"):
        method.set_secrets({})
    with pytest.raises(MethodError, match=r"must permute 0\.\.11"):
        method.set_secrets({**secrets, "order": torch.zeros(COUNT).long()})
    with pytest.raises(MethodError, match=r"channels 60 are to be chosen from fewer candidates, 50"):
        small(channels=60, candidates=50)
    method.drop_secrets()
    with pytest.raises(MethodError, match=r"secrets \(order, weights\) are absent"):
        method.protect(torch.zeros(1, 3, 112, 112))
