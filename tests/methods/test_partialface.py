"""PartialFace against the numbers of the authors' code, and the promises of its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppfr
from ppfr.methods.partialface import (
    KEPT,
    ORDERS,
    REFERENCE_ORDERS,
    REFERENCE_SUBSETS,
    GatedConv2d,
    PartialFaceOptions,
    draw_training_kinds,
    make_table,
)
from ppfr.util.errors import MethodError


def small(**options: object) -> ppfr.Method:
    return ppfr.create("partialface", "mobilefacenet", width=0.25, embedding_size=32, **options)


def test_the_reference_table_is_the_recorded_one(golden: Callable[[str], Any]) -> None:
    assert golden("partialface_subsets.npz")["frequency_table"].tolist() == [list(row) for row in REFERENCE_SUBSETS]


def test_a_training_batch_is_the_recorded_one(golden: Callable[[str], Any]) -> None:
    recorded = golden("partialface_subsets.npz")
    method = small()
    images = torch.from_numpy(recorded["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels, choice, order = (
        torch.from_numpy(recorded[key]) for key in ("labels", "drawn_subset_choice", "drawn_permutation")
    )
    # the recorded frequencies say which subset the label's triple and the choice meant
    kinds = []
    for row, (frequencies, drawn_order) in enumerate(
        zip(recorded["train_frequency_order"], order.tolist(), strict=True)
    ):
        subset = next(
            number for number, members in enumerate(REFERENCE_SUBSETS) if set(members) == set(frequencies.tolist())
        )
        assert [REFERENCE_SUBSETS[subset][place] for place in REFERENCE_ORDERS[drawn_order]] == frequencies.tolist()
        assert subset == _allowed(int(labels[row]))[int(choice[row])]
        kinds.append(drawn_order + ORDERS * subset)
    payload = method._channels(images, torch.tensor(kinds))
    place = torch.from_numpy(recorded["train_pos"]).long()
    wanted = torch.from_numpy(recorded["train_batch"])
    found = payload[place[:, 0], place[:, 1], place[:, 2], place[:, 3]]
    frequency = torch.from_numpy(recorded["train_frequency_order"]).long()[place[:, 0], place[:, 1] % 9]
    tolerance = torch.from_numpy(recorded["frequency_atol"])[frequency]
    assert bool(((found - wanted).abs() <= tolerance).all())


def _allowed(label: int) -> list[int]:
    """Subsets an identity may use, found by drawing: a slow oracle of the triple's table."""
    generator = torch.Generator().manual_seed(0)
    kinds = draw_training_kinds(torch.full((500,), label), 3, generator)
    return sorted(set((kinds // ORDERS).tolist()))


@settings(max_examples=25, deadline=None)
@given(label=st.integers(0, 10_000))
def test_an_identity_trains_on_three_subsets(label: int) -> None:
    assert len(_allowed(label)) == 3
    assert _allowed(label) == _allowed(label % 20)


def test_the_twenty_triples_are_all_used_once() -> None:
    assert len({tuple(_allowed(label)) for label in range(20)}) == 20


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_drawn_table_splits_the_kept_frequencies(seed: int) -> None:
    subsets, orders = make_table(PartialFaceOptions(table="random", table_seed=seed))
    assert sorted(subsets.flatten().tolist()) == list(KEPT)
    assert all(sorted(order) == list(range(9)) for order in orders.tolist())


def test_every_kind_is_drawn_at_inference() -> None:
    method = small()
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(18, (400,), generator=generator)
    assert len(kinds.unique()) == 18
    one = torch.rand((1, 3, 112, 112), generator=generator) * 2 - 1
    payloads = method.protect(one.expand(40, -1, -1, -1), generator)["channels"]
    assert len(torch.unique(payloads.flatten(1)[:, ::997], dim=0)) > 8


def test_a_wrong_table_is_refused() -> None:
    method = small()
    secrets = method.secrets()
    with pytest.raises(MethodError, match="must split the frequencies"):
        method.set_secrets({**secrets, "subsets": torch.zeros(6, 9, dtype=torch.long)})
    with pytest.raises(MethodError, match=r"must be 3 permutations of 0..8"):
        method.set_secrets({**secrets, "orders": torch.zeros(3, 9, dtype=torch.long)})
    with pytest.raises(MethodError, match="needs the secrets"):
        method.set_secrets({})


def test_the_gate_tells_the_kinds_apart() -> None:
    """Fitted on some images, the gate recognises the kind of payloads of others."""
    method = small()
    stage = method.stages()[0]
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand((72, 3, 28, 28), generator=generator) * 2 - 1, size=112, mode="bilinear"
    )
    stage.calibrate(smooth[:54], generator)
    stem = stage.trunk.first_layer
    assert isinstance(stem, GatedConv2d)
    kinds = torch.arange(18)
    gate = stem.gate(method._channels(smooth[54:], kinds))
    assert float((gate.argmax(1) == kinds).float().mean()) >= 16 / 18
    assert torch.allclose(gate.sum(1), torch.ones(18))
