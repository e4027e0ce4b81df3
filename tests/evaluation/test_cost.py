from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.evaluation.cost import evaluating, measure_cost, median_latency, multiply_adds
from ppfr.methods import Method, Payload, create
from ppfr.util.errors import ShapeError


def test_counts_by_hand(tiny: Method, faces: FaceSet, generator: torch.Generator) -> None:
    images = to_tensor(faces.images(np.arange(4)))
    tiny.train()
    cost = measure_cost(tiny, images, generator, repeats=3, warmup=1)
    pixels = 3 * 28 * 28
    assert (cost.client_parameters, cost.server_parameters) == (3 * 16, 8 * pixels)
    # one 4 x 4 filter and one product a pixel; one row of the matrix an output
    assert (cost.client_macs, cost.server_macs) == (16 * pixels + pixels, 8 * pixels)
    assert cost.payload_bytes_raw == 4 * pixels
    messages = [len(one.to_bytes()) for one in tiny.protect(images, torch.Generator().manual_seed(1))]
    assert cost.payload_bytes_sent == pytest.approx(np.mean(messages), rel=0.02)
    assert cost.client_ms > 0
    assert cost.server_ms > 0
    assert tiny.server.training
    assert json.loads(json.dumps(cost.to_dict()))["device"] == "cpu"
    assert f"{8 * pixels:,} parameters" in str(cost)


def test_conv_batchnorm_linear_and_einsum() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()
    with torch.inference_mode():
        assert multiply_adds(network, torch.zeros(2, 3, 8, 8)) == 2 * (3 * 9 * 8 * 16 + 128 * 5)
        assert multiply_adds(lambda x: torch.einsum("ab,cbd->cad", x, torch.zeros(2, 5, 3)), torch.zeros(4, 5)) == 120
        assert multiply_adds(lambda x: x + x, torch.zeros(9)) == 0


@pytest.mark.parametrize("name", ["arcface", "partialface"])
def test_real_methods(name: str, generator: torch.Generator) -> None:
    method = create(name, "mobilefacenet")
    images = torch.rand(2, 3, 112, 112, generator=generator) * 2 - 1
    cost = measure_cost(method, images, generator, repeats=1, warmup=0)
    payload: Payload = method.protect(images, generator)
    assert cost.payload_bytes_raw == payload.nbytes == {"arcface": 3, "partialface": 27}[name] * 4 * 112 * 112
    assert cost.payload_bytes_sent < 1.01 * cost.payload_bytes_raw
    # a transform learns nothing but has to be computed: at least a product for each value it sends
    assert cost.client_parameters == 0
    assert (cost.client_macs >= 27 * 112 * 112) == (name == "partialface")
    assert cost.server_parameters == sum(weight.numel() for weight in method.server.parameters())
    assert cost.server_macs > 100e6


def test_a_client_that_searches_by_gradients_is_counted(generator: torch.Generator) -> None:
    """Its network sees the searched image itself: nothing derived from it stands between."""
    method = create("avih", "mobilefacenet", width=0.25, embedding_size=32, iterations=2, key_width=0.125)
    images = torch.rand(1, 3, 112, 112, generator=generator) * 2 - 1
    cost = measure_cost(method, images, generator, repeats=1, warmup=0)
    # two passes forwards and backwards, and one to judge what they found
    assert cost.client_macs > 3 * cost.server_macs


def test_latency_is_the_median_after_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: a busy machine changes nothing."""
    clock, durations = [0.0], iter([0.2, 0.001, 0.004, 0.1])
    monkeypatch.setattr("ppfr.evaluation.cost.time.perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(durations)

    assert median_latency(call, repeats=3, warmup=1) == pytest.approx(4)


def test_modes_come_back_even_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Dropout())
    network[1].eval()

    def stop() -> None:
        with evaluating(network):
            assert not network[0].training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert network[0].training
    assert not network[1].training


def test_refusals(tiny: Method, generator: torch.Generator) -> None:
    with pytest.raises(ShapeError, match="at least one image to measure with"):
        measure_cost(tiny, torch.zeros(0, 3, 112, 112), generator)
    with pytest.raises(ShapeError, match="repeats 0, warmup 0"):
        median_latency(lambda: None, repeats=0, warmup=0)
