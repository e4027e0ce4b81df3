"""Messages: what is written comes back, and nothing that anyone changes on the way does harm."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ppfr.transforms import block_dct
from ppfr.util.errors import PayloadError
from ppfr.wire import Limits, TensorType, read_message, write_message

EXPECTED = {
    "channels": TensorType((6, 16, 16), torch.float32),
    "map": TensorType((1, 4, 4), torch.float32),
    "levels": TensorType((3,), torch.int8),
}
HEADER = {"method": "toy", "contract": "c"}
CODINGS = {
    "exact": {"channels": "float32", "map": "float32", "levels": "float32"},
    "small": {"channels": "dct:0.05", "map": "int8", "levels": "float32"},
}


def tensors(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((batch, 3, 16, 16), generator=generator) * 2 - 1
    return {
        "channels": block_dct(images, [12, 33]).flatten(1, 2),
        "map": torch.rand((batch, 1, 4, 4), generator=generator),
        "levels": torch.arange(3 * batch, dtype=torch.int8).reshape(batch, 3),
    }


MESSAGES = {name: write_message(tensors(), codings, HEADER) for name, codings in CODINGS.items()}


def test_every_bit_comes_back() -> None:
    back = read_message(MESSAGES["exact"], EXPECTED, HEADER)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors().items())


def test_a_small_message_comes_back_nearly() -> None:
    back = read_message(MESSAGES["small"], EXPECTED, HEADER)
    sent = tensors()
    error = (back["channels"] - sent["channels"]).square().mean() / sent["channels"].square().mean()
    assert 0 < error.sqrt() < 0.1
    torch.testing.assert_close(back["map"], sent["map"], atol=3e-3, rtol=0)
    assert torch.equal(back["levels"], sent["levels"])
    assert len(MESSAGES["small"]) < 0.5 * len(MESSAGES["exact"])


def plain(**changes: str | None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The parts and header of the exact message, with changes of the header."""
    parts = {
        name: tensor.contiguous().view(torch.uint8).reshape(*tensor.shape, -1).movedim(-1, 1).contiguous()
        for name, tensor in tensors().items()
    }
    header = {"ppfr-payload": "2", "codings": json.dumps(CODINGS["exact"]), **HEADER, **changes}
    return parts, {name: value for name, value in header.items() if value is not None}


def pack(parts: dict[str, torch.Tensor], header: dict[str, str]) -> bytes:
    return zstandard.compress(save(parts, metadata=header))


def test_the_hand_made_message_is_the_real_one() -> None:
    back = read_message(pack(*plain()), EXPECTED, HEADER)
    assert torch.equal(back["channels"], tensors()["channels"])


def _without(name: str) -> Callable[[], bytes]:
    def make() -> bytes:
        parts, header = plain()
        del parts[name]
        return pack(parts, header)

    return make


def _with(name: str, tensor: torch.Tensor) -> Callable[[], bytes]:
    def make() -> bytes:
        parts, header = plain()
        return pack({**parts, name: tensor}, header)

    return make


REFUSED = {
    "nothing": (lambda: b"", "no zstd frame"),
    "text": (lambda: b"<html>", "no zstd frame"),
    "cut": (lambda: MESSAGES["exact"][:-9], "was it cut off"),
    "more behind": (lambda: MESSAGES["exact"] + b"x", "no zstd frame"),
    "two frames": (lambda: MESSAGES["exact"] * 2, "no zstd frame"),
    "a bomb": (lambda: zstandard.compress(bytes(100_000_000)), "inflates to more than"),
    "a silent bomb": (
        lambda: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000)),
        "inflates to more than",
    ),
    "an old version": (lambda: pack(*plain(**{"ppfr-payload": "1"})), "payload format is '1'"),
    "another method": (lambda: pack(*plain(method="other")), "made for method 'other'; expected 'toy'"),
    "another contract": (lambda: pack(*plain(contract="d")), "made for contract 'd'; expected 'c'"),
    "no contract": (lambda: pack(*plain(contract=None)), "made for contract None"),
    "no codings": (lambda: pack(*plain(codings=None)), "does not say how its tensors are coded"),
    "odd codings": (lambda: pack(*plain(codings='{"channels": 3}')), "expected a coding for each tensor"),
    "deep codings": (lambda: pack(*plain(codings="[" * 20000)), "does not say how its tensors are coded"),
    "unknown coding": (
        lambda: pack(*plain(codings=json.dumps(CODINGS["exact"] | {"map": "jpeg"}))),
        "no coding 'jpeg'",
    ),
    "missing part": (_without("map"), r"missing tensors \['map'\]"),
    "extra part": (_with("more", torch.zeros(2)), r"unexpected tensors \['more'\]"),
    "wrong shape": (_with("map", torch.zeros(2, 4, 1, 4, 5, dtype=torch.uint8)), r"'map' has shape \(2, 4, 1, 4, 5\)"),
    "wrong type": (_with("map", torch.zeros(2, 4, 1, 4, 4)), "'map' has shape .* torch.float32; expected"),
    "another batch": (_with("map", torch.zeros(3, 4, 1, 4, 4, dtype=torch.uint8)), "share the batch axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(PayloadError, match=message):
        read_message(make(), EXPECTED, HEADER)


def test_it_refuses_more_images_than_it_takes() -> None:
    with pytest.raises(PayloadError, match="holds 2 images; at most 1"):
        read_message(MESSAGES["exact"], EXPECTED, HEADER, Limits(1))


@settings(max_examples=1500)
@given(
    which=st.sampled_from(sorted(MESSAGES)),
    cut=st.one_of(st.just(0), st.integers(0, 500)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    inside=st.booleans(),
)
def test_a_changed_message_is_refused_or_read(
    which: str, cut: int, changes: list[tuple[int, int]], inside: bool
) -> None:
    # inside the frame, damage passes the checksum and meets the parser behind it
    data = bytearray(zstandard.decompress(MESSAGES[which]) if inside else MESSAGES[which])
    del data[len(data) - cut :]
    for place, value in changes:
        if data:
            data[place % len(data) if place % 2 else place % min(len(data), 1000)] = value
    try:
        back = read_message(zstandard.compress(bytes(data)) if inside else bytes(data), EXPECTED, HEADER)
    except PayloadError:
        return
    for name, part in EXPECTED.items():
        assert tuple(back[name].shape[1:]) == part.shape and back[name].dtype == part.dtype
