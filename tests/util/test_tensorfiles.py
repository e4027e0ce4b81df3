"""Safetensors whose bytes follow from what they hold, and that any reader of the format can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load

from ppfr.util.tensorfiles import tensor_bytes, write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, -2], dtype=torch.int8), "none": torch.empty(0)}


@given(metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=6))
def test_the_bytes_do_not_depend_on_the_order_of_what_is_said(metadata: dict[str, str]) -> None:
    backwards = dict(reversed(metadata.items()))
    data = tensor_bytes(TENSORS, metadata)
    assert {tensor_bytes(TENSORS, backwards) for _ in range(4)} == {data}
    found = load(data)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_file_holds_the_same_bytes_and_another_reader_finds_everything(tmp_path: Path) -> None:
    metadata = {f"key {number}": f"Grüße {number}" for number in range(20)}
    write_tensors(tmp_path / "t.safetensors", TENSORS, metadata, mode=0o600)
    assert (tmp_path / "t.safetensors").read_bytes() == tensor_bytes(TENSORS, metadata)
    assert (tmp_path / "t.safetensors").stat().st_mode & 0o777 == 0o600
    with safe_open(tmp_path / "t.safetensors", framework="pt") as stream:
        assert stream.metadata() == metadata
        assert torch.equal(stream.get_tensor("b"), TENSORS["b"])


def test_views_are_written_as_what_they_show_and_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "t.safetensors", {"columns": wide[:, 1:3].requires_grad_()})
    kept = (tmp_path / "t.safetensors").read_bytes()
    assert torch.equal(load(kept)["columns"], wide[:, 1:3])
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "t.safetensors", {"columns": wide}, {"number": 1})  # type: ignore[dict-item]
    assert (tmp_path / "t.safetensors").read_bytes() == kept
