from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.evaluation.metrics.roc import roc, roc_of_parts
from ppfr.util.errors import DataError

# few distinct values, so that ties of all kinds come up
scores = st.lists(st.integers(-3, 3).map(float) | st.floats(-3, 3), min_size=1, max_size=30)


@given(genuine=scores, impostor=scores, far=st.floats(0, 1))
def test_parts_give_the_figures_of_the_whole(genuine: list[float], impostor: list[float], far: float) -> None:
    whole = roc([*genuine, *impostor], [1] * len(genuine) + [0] * len(impostor))
    parts = roc_of_parts(genuine, impostor)
    assert parts.tar_at(far) == whole.tar_at(far)
    assert parts.auc == pytest.approx(whole.auc, abs=1e-12)
    assert parts.eer == pytest.approx(whole.eer, abs=1e-12)
    assert (parts.genuine, parts.impostor) == (whole.genuine, whole.impostor)
    points = dict(zip(whole.thresholds.tolist(), zip(whole.far, whole.tar, strict=True), strict=True))
    for threshold, *rates in zip(parts.thresholds.tolist(), parts.far, parts.tar, strict=True):
        assert points[threshold] == tuple(rates)


def test_a_long_curve_becomes_short() -> None:
    rng = np.random.default_rng(0)
    parts = roc_of_parts(rng.normal(2, 1, 50), rng.normal(0, 1, 20_000))
    assert len(parts.far) <= 2 * 50 + 2


@pytest.mark.parametrize(("genuine", "impostor"), [([], [1.0]), ([1.0], []), ([1.0], [np.nan]), ([[1.0]], [1.0])])
def test_what_is_no_curve_is_refused(genuine: Any, impostor: Any) -> None:
    with pytest.raises(DataError):
        roc_of_parts(genuine, impostor)
