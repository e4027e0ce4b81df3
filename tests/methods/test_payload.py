"""What leaves the client: checked when it is made, and when it comes back from a wire or a file."""

from __future__ import annotations

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ppfr.methods import Payload, PayloadSchema, TensorSpec
from ppfr.util.errors import PayloadError

SCHEMA = PayloadSchema("toy", {"channels": TensorSpec((3, 4, 5), "numbers"), "map": TensorSpec((1, 2, 2), "a map")})


def tensors(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn((batch, *spec.shape), generator=generator) for name, spec in SCHEMA.tensors.items()}


def payload(batch: int = 2) -> Payload:
    return Payload(SCHEMA, tensors(batch))


def test_it_knows_its_size() -> None:
    assert len(payload(3)) == 3
    assert payload().nbytes == 4 * (3 * 4 * 5 + 2 * 2)
    assert 0 < payload().sent_nbytes < payload().nbytes + 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": torch.zeros(2, 3, 4, 6)}, r"'channels' has shape \(2, 3, 4, 6\); toy expects \(B, 3, 4, 5\)"),
        ({"channels": torch.zeros(2, 3, 4, 5, dtype=torch.float64)}, "'channels' has dtype torch.float64"),
        ({"map": torch.zeros(3, 1, 2, 2)}, "must share the batch axis"),
        ({"stowaway": torch.zeros(2)}, r"unexpected \['stowaway'\]"),
    ],
)
def test_it_refuses_what_the_schema_does_not_name(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        Payload(SCHEMA, {**tensors(), **change})


def test_it_refuses_a_missing_tensor() -> None:
    with pytest.raises(PayloadError, match=r"missing tensors \['map'\]"):
        Payload(SCHEMA, {"channels": torch.zeros(2, 3, 4, 5)})


def test_bytes_bring_back_the_same_values() -> None:
    sent = payload()
    back = Payload.from_bytes(sent.to_bytes(), SCHEMA)
    assert all(torch.equal(back[name], sent[name]) for name in SCHEMA.tensors)


def test_a_file_brings_back_the_same_values(tmp_path) -> None:
    sent = payload()
    sent.save(tmp_path / "one.safetensors")
    back = Payload.load(tmp_path / "one.safetensors", SCHEMA)
    assert all(torch.equal(back[name], sent[name]) for name in SCHEMA.tensors)


def test_another_methods_payload_is_refused() -> None:
    other = PayloadSchema("other", SCHEMA.tensors)
    with pytest.raises(PayloadError, match="made for method 'toy'; expected 'other'"):
        Payload.from_bytes(payload().to_bytes(), other)


def test_values_that_are_not_finite_are_refused() -> None:
    poisoned = tensors()
    poisoned["map"][0, 0, 0, 0] = float("nan")
    with pytest.raises(PayloadError, match="'map' holds values that are not finite"):
        Payload.from_bytes(Payload(SCHEMA, poisoned).to_bytes(), SCHEMA)


def test_a_bomb_is_not_inflated() -> None:
    bomb = zstandard.compress(bytes(200_000_000))
    with pytest.raises(PayloadError, match="inflates to more than"):
        Payload.from_bytes(bomb, SCHEMA)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 2000), flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=4))
def test_damage_is_refused_or_harmless(cut: int, flips: list[tuple[int, int]]) -> None:
    whole = payload().to_bytes()
    damaged = bytearray(whole[: max(0, len(whole) - cut)])
    for place, mask in flips:
        if damaged:
            damaged[place % len(damaged)] ^= mask
    try:
        back = Payload.from_bytes(bytes(damaged), SCHEMA)
    except PayloadError:
        return
    # only undamaged data passes the frame's checksum
    assert bytes(damaged) == whole
    assert len(back) == 2


def test_a_foreign_safetensors_buffer_is_refused() -> None:
    with pytest.raises(PayloadError, match="payload format is None"):
        Payload.from_bytes(zstandard.compress(save({"channels": torch.zeros(1, 3, 4, 5)})), SCHEMA)


def test_rows_can_be_taken_and_joined() -> None:
    sent = payload(3)
    again = Payload.concatenate(list(sent))
    assert torch.equal(again["channels"], sent["channels"])
    assert torch.equal(sent.select([2])["map"][0], sent["map"][2])
    with pytest.raises(PayloadError, match="no payloads"):
        Payload.concatenate([])


def test_a_payload_of_another_deployment_is_refused() -> None:
    sent = payload().to_bytes(contract="ours")
    assert len(Payload.from_bytes(sent, SCHEMA, contract="ours")) == 2
    with pytest.raises(PayloadError, match="made for contract 'ours'; expected 'theirs'"):
        Payload.from_bytes(sent, SCHEMA, contract="theirs")


def test_more_images_than_asked_for_are_refused() -> None:
    assert len(Payload.from_bytes(payload(3).to_bytes(), SCHEMA, images=3)) == 3
    with pytest.raises(PayloadError, match="holds 3 images; at most 2"):
        Payload.from_bytes(payload(3).to_bytes(), SCHEMA, images=2)


@pytest.mark.parametrize(("coding", "tolerance"), [("float16", 2e-3), ("int8", 0.02), ("dct:0.1", 2e-3)])
def test_a_lossy_coding_comes_back_nearly(coding: str, tolerance: float) -> None:
    # no tensor here is a block DCT: dct codes them in half precision
    sent = payload()
    back = Payload.from_bytes(sent.to_bytes(coding), SCHEMA)
    for name in SCHEMA.tensors:
        assert not torch.equal(back[name], sent[name])
        torch.testing.assert_close(back[name], sent[name], atol=tolerance, rtol=0)


def test_whole_numbers_keep_every_bit_in_any_coding() -> None:
    schema = PayloadSchema("toy", {"levels": TensorSpec((2, 3), "levels", torch.int8)})
    sent = Payload(schema, {"levels": torch.arange(-6, 6, dtype=torch.int8).reshape(2, 2, 3)})
    for coding in ("float32", "float16", "int8", "dct"):
        assert torch.equal(Payload.from_bytes(sent.to_bytes(coding), schema)["levels"], sent["levels"])


def test_an_unknown_coding_is_refused() -> None:
    with pytest.raises(PayloadError, match="no coding 'int4'; expected float32, float16, int8, dct"):
        payload().to_bytes("int4")


def test_a_foreign_file_is_refused(tmp_path) -> None:
    payload().save(tmp_path / "one.safetensors")
    with pytest.raises(PayloadError, match="holds a payload of 'toy'"):
        Payload.load(tmp_path / "one.safetensors", PayloadSchema("other", SCHEMA.tensors))
