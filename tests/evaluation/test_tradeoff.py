"""Accuracy against bytes: the same pairs for every setting, and the best one found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ppfr
from ppfr.data.faceset import FaceSet
from ppfr.evaluation.tradeoff import Tradeoff, TradeoffPoint, measure_tradeoff, payload_grid
from ppfr.methods import Method
from ppfr.methods.proface_c import ProFaceC
from ppfr.util.errors import DataError, MethodError


def proface() -> Method:
    return ppfr.create("proface-c", "mobilefacenet", width=0.125, embedding_size=16)


def faces() -> FaceSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 112, 112, 3), np.uint8)
    return FaceSet(
        "noise",
        [str(index // 4) for index in range(24)],
        lambda index: images[index],
        names=[str(n) for n in range(24)],
    )


def point(accuracy: float, sent: int) -> TradeoffPoint:
    return TradeoffPoint({"bits": sent}, accuracy, accuracy, accuracy, 1000, sent)


def test_the_grid_begins_with_the_least_lossy_setting() -> None:
    grid = payload_grid(proface())
    assert grid[0] == {"bits": 8, "pruning": 0.0}
    assert len(grid) == len({tuple(settings.values()) for settings in grid}) == 24
    assert payload_grid(proface(), {"bits": [8, 2]}) == [{"bits": 8}, {"bits": 2}]


def test_methods_without_settings_and_unknown_settings_are_refused() -> None:
    plain = ppfr.create("arcface", "mobilefacenet", width=0.125, embedding_size=16)
    with pytest.raises(MethodError, match="arcface: its payload has no settings to change"):
        payload_grid(plain)
    with pytest.raises(MethodError, match="no payload setting 'bit'; it has bits, pruning"):
        payload_grid(proface(), {"bit": [8]})
    with pytest.raises(DataError, match="no setting to measure"):
        measure_tradeoff(proface(), faces(), [])


def test_coarser_settings_send_fewer_bytes_over_the_same_pairs() -> None:
    seen: list[tuple[int, int]] = []
    grid = [{"bits": 8, "pruning": 0.0}, {"bits": 8, "pruning": 1.0}]
    method = proface()
    assert isinstance(method, ProFaceC)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for interface in method.client.interfaces:  # zero before training: nothing to leave out
            for weight in interface.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
    result = measure_tradeoff(method, faces(), grid, progress=lambda done, total: seen.append((done, total)))
    whole, empty = result.points
    assert seen == [(1, 2), (2, 2)]
    assert whole.raw_bytes == empty.raw_bytes
    assert empty.sent_bytes < whole.sent_bytes / 2


def test_settings_that_change_nothing_leave_the_accuracy_as_it_is() -> None:
    grid = [{"bits": 8, "pruning": 0.0}, {"bits": 8, "pruning": 1.0}]
    whole, empty = measure_tradeoff(proface(), faces(), grid).points  # an untrained client's maps are all zero
    assert whole.accuracy == empty.accuracy


def test_the_best_setting_loses_less_than_asked() -> None:
    result = Tradeoff("m", (point(0.95, 900), point(0.945, 500), point(0.94, 300), point(0.80, 100)))
    assert result.best(0.011).sent_bytes == 300
    assert result.best(0.01).sent_bytes == 500
    assert result.best(0.001).sent_bytes == 900
    assert result.best(0.5).sent_bytes == 100
    assert result.to_dict(0.01)["best"]["settings"] == {"bits": 500}
