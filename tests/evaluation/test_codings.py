"""Codings: the same pairs for each, and bytes that are those of real messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppfr.data.images import to_tensor
from ppfr.evaluation.codings import codings_for, measure_codings
from ppfr.evaluation.evaluate import evaluate_pairs
from ppfr.methods import BackboneSpec, create
from ppfr.util.errors import DataError, PayloadError


def test_codings_that_a_method_has(tiny) -> None:
    spec = BackboneSpec("ir18", 8, 0.0625, (32, 32))
    assert "dct:0.02" in codings_for(create("partialface", spec))
    assert codings_for(tiny) == ["float32", "float16", "int8"]


def test_the_reference_is_what_evaluate_measures(tiny, faces) -> None:
    costs = measure_codings(tiny, faces, genuine=60, impostor=60)
    expected = evaluate_pairs(tiny, faces, genuine=60, impostor=60, flip=False)
    assert [cost.coding for cost in costs] == ["float32", "float16", "int8"]
    assert costs[0].accuracy == pytest.approx(expected.accuracy)
    assert costs[0].lost == 0
    assert costs[2].lost == pytest.approx(costs[0].accuracy - costs[2].accuracy)
    assert costs[0].bytes_mean > costs[1].bytes_mean > costs[2].bytes_mean > 28 * 28


def test_bytes_are_those_of_messages(tiny, faces) -> None:
    costs = measure_codings(tiny, faces, ["int8"], genuine=600, impostor=600)
    payload = tiny.protect(to_tensor(faces.images(np.arange(60))), torch.Generator().manual_seed(0))
    sizes = [len(one.to_bytes("int8")) for one in payload]
    assert abs(costs[0].bytes_mean - np.mean(sizes)) < 20
    assert abs(costs[0].bytes_most - max(sizes)) < 60


def test_no_coding_and_unknown_ones_are_refused(tiny, faces) -> None:
    with pytest.raises(DataError, match="no coding to measure"):
        measure_codings(tiny, faces, [])
    with pytest.raises(PayloadError, match="no coding 'jpeg'"):
        measure_codings(tiny, faces, ["jpeg"])
