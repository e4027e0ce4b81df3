"""SlerpFace over other methods: their payload and training, its own templates, which a new seed revokes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.transforms.template import protect_template
from ppfr.util.errors import MethodError

BASES = ["arcface", "partialface"]


def small(**options: object) -> Method:
    return ppfr.create("slerpface", "mobilefacenet", width=0.25, embedding_size=32, **options)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((3, 3, 112, 112), generator=drawn(5)) * 2 - 1


@pytest.mark.parametrize("base", BASES)
def test_payload_and_training_are_the_bases(base: str, images: Tensor) -> None:
    over, plain = small(base=base), ppfr.create(base, "mobilefacenet", width=0.25, embedding_size=32)
    sent, wanted = over.protect(images, drawn(1)), plain.protect(images, drawn(1))
    assert all(torch.equal(sent[name], wanted[name]) for name in wanted.tensors)
    assert [stage.name for stage in over.stages()] == [stage.name for stage in plain.stages()]
    assert over.info.secrets == plain.info.secrets
    template = protect_template(plain.embed(wanted), over.key, 0.7)
    assert torch.allclose(over.embed(sent), template, atol=1e-5)


def test_a_base_with_secrets_comes_back_from_a_file(images: Tensor, tmp_path) -> None:
    method = small(base="partialface", base_options={"table": "random", "table_seed": 3})
    ppfr.save(method, tmp_path)
    back = ppfr.load(tmp_path)
    assert torch.equal(back(images, drawn(1)), method(images, drawn(1)))
    (tmp_path / "secrets.safetensors").unlink()
    payload = method.protect(images, drawn())
    server = ppfr.load(tmp_path)
    assert torch.equal(server.embed(payload), method.embed(payload))
    with pytest.raises(MethodError, match="secrets"):
        server.protect(images)


def test_a_new_seed_revokes_without_training(images: Tensor) -> None:
    method = small(share=0.9)
    revoked = method.with_options(seed=1)
    with torch.no_grad():
        old, new = method(images), revoked(images)
    assert float(F.cosine_similarity(old, new).abs().max()) < 0.8
    assert torch.equal(method.server(method.protect(images).tensors), revoked.server(revoked.protect(images).tensors))


def test_it_says_what_it_does_not_protect() -> None:
    assert small().remarks()[0] == (
        "protects stored templates, 24 of 32 dimensions kept; what travels is the payload of arcface"
    )


def test_wrong_bases_are_refused() -> None:
    with pytest.raises(MethodError, match="base is 'slerpface' itself"):
        small(base="slerpface")
    with pytest.raises(MethodError, match="no method 'nofacenet'"):
        small(base="nofacenet")
    with pytest.raises(MethodError, match="arcface: tint: Extra inputs"):
        small(base_options={"tint": 1})
