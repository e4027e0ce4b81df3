"""Every registered method keeps the same promises; one table, the outcome asserted."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import ppfr
from ppfr.methods import Method, MethodInfo, method_class, register
from ppfr.methods.arcface import ArcFace
from ppfr.methods.common.files import MODEL_FILE, SECRETS_FILE, load_method
from ppfr.util.errors import CheckpointError, MethodError, PayloadError, ShapeError

NAMES = ppfr.method_names()
SMALL = {"backbone": "mobilefacenet", "width": 0.25, "embedding_size": 32}
# what keeps a costly client cheap here
LIGHT: dict[str, dict[str, object]] = {"privacyhfr": {"iterations": 2}, "avih": {"iterations": 2, "key_width": 0.125}}


def small(name: str, seed: int = 0, **options: object) -> Method:
    return ppfr.create(name, seed=seed, **SMALL, **LIGHT.get(name, {}), **options)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand((3, 3, 112, 112), generator=torch.Generator().manual_seed(5)) * 2 - 1


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_methods_of_this_release_are_known() -> None:
    assert {"arcface", "arcface-fd", "duetface", "partialface"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_protect_then_embed(name: str, images: Tensor) -> None:
    method = small(name)
    payload = method.protect(images, drawn())
    embedding = method.embed(payload)
    assert embedding.shape == (3, 32)
    assert torch.isfinite(embedding).all()
    assert payload.schema.method == name
    assert method.info.paper


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_name_the_paper_and_what_differs(name: str) -> None:
    cls = method_class(name)
    assert cls.__doc__ is not None
    first, *_ = cls.__doc__.splitlines()
    assert first.endswith(").") and len(first) < 120
    assert f"Paper: {cls.info.paper}." in cls.__doc__
    assert cls.info.departures in cls.__doc__
    assert cls.info.departures or not cls.info.protects


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_generator_and_nothing_else(name: str, images: Tensor) -> None:
    method = small(name)
    torch.manual_seed(1)
    first = method.protect(images, drawn(3))
    torch.manual_seed(2)
    second = method.protect(images, drawn(3))
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_seed_and_nothing_else(name: str) -> None:
    torch.manual_seed(1)
    first = small(name, seed=4).state_dict()
    torch.manual_seed(2)
    again, other = small(name, seed=4).state_dict(), small(name, seed=5).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_method_comes_back_whole(name: str, images: Tensor, tmp_path) -> None:
    method = small(name, seed=7)
    ppfr.save(method, tmp_path)
    back = ppfr.load(tmp_path)
    before = method.embed(method.protect(images, drawn()))
    after = back.embed(back.protect(images, drawn()))
    assert torch.equal(before, after)
    assert not back.training


@pytest.mark.parametrize("name", NAMES)
def test_hypotheses_hold_the_payload(name: str, images: Tensor) -> None:
    """One of the clients an attacker must try is the one that made the payload."""
    method = small(name)
    payload = method.protect(images[:1], drawn(9))
    guesses = [hypothesis.apply(images[:1]) for hypothesis in method.hypotheses()]
    if not guesses:  # too many to list: then no two queries may be alike
        again = method.protect(images[:1], drawn(10))
        assert any(not torch.allclose(again[tensor], payload[tensor], atol=1e-4) for tensor in payload.tensors)
        return
    assert any(all(agree(guess[tensor], payload[tensor]) for tensor in payload.tensors) for guess in guesses)


def agree(guess: Tensor, sent: Tensor) -> bool:
    """Equal up to rounding; a guess at whole numbers is of the values before they were rounded."""
    return bool(((guess - sent.float()).abs() <= (1e-4 if sent.is_floating_point() else 0.501)).all())


@pytest.mark.parametrize("name", NAMES)
def test_images_are_checked(name: str, images: Tensor) -> None:
    method = small(name)
    with pytest.raises(ShapeError, match="expected aligned crops of 112x112"):
        method.protect(images[..., :96])
    with pytest.raises(ShapeError, match=r"range over .* expected \[-1, 1\]"):
        method.protect(images * 255)
    with pytest.raises(ShapeError, match=r"dtype torch.uint8"):
        method.protect(images.byte())


def test_another_methods_payload_is_refused(images: Tensor) -> None:
    payload = small("partialface").protect(images, drawn())
    with pytest.raises(PayloadError, match=r"arcface expects \(B, 3, 112, 112\)"):
        small("arcface").embed(payload)


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(MethodError, match=r"no method 'nofacenet'; known: arcface"):
        ppfr.create("nofacenet")
    with pytest.raises(MethodError, match="stems: Extra inputs are not permitted"):
        small("partialface", stems="conv")


def test_a_taken_name_is_refused() -> None:
    class Impostor(ArcFace):
        info = MethodInfo(name="arcface", title="x", paper="x")

    with pytest.raises(MethodError, match=r"'arcface' is taken by ppfr\.methods\.arcface\.ArcFace"):
        register(Impostor)


# --- files ---------------------------------------------------------------------------------------------------------


def test_secrets_lie_apart_and_private(images: Tensor, tmp_path) -> None:
    method = small("partialface", table="random", table_seed=42)
    ppfr.save(method, tmp_path)
    assert stat.S_IMODE((tmp_path / SECRETS_FILE).stat().st_mode) == 0o600
    with safe_open(tmp_path / MODEL_FILE, framework="pt") as stream:
        assert "table_seed" not in json.loads(stream.metadata()["config"])["options"]
        assert not [key for key in stream.keys() if "subset" in key or "order" in key]  # noqa: SIM118
    back = ppfr.load(tmp_path)
    assert torch.equal(back.secrets()["subsets"], method.secrets()["subsets"])


def test_a_server_embeds_without_the_secrets(images: Tensor, tmp_path) -> None:
    method = small("partialface", table="random", table_seed=42)
    ppfr.save(method, tmp_path)
    (tmp_path / SECRETS_FILE).unlink()
    server = ppfr.load(tmp_path)
    payload = method.protect(images, drawn())
    assert torch.equal(server.embed(payload), method.embed(payload))
    with pytest.raises(MethodError, match=r"secrets \(subsets, orders\) are absent"):
        server.protect(images)


def test_damaged_secrets_are_named(tmp_path) -> None:
    ppfr.save(small("partialface"), tmp_path)
    secrets = tmp_path / SECRETS_FILE
    secrets.write_bytes(secrets.read_bytes()[:100])
    with pytest.raises(
        CheckpointError, match=r"secrets\.safetensors cannot be read as a client's secrets: .* copy it again"
    ):
        ppfr.load(tmp_path)


def test_loading_refuses_what_is_not_whole(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        ppfr.load(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="cannot be read as a ppfr model"):
        ppfr.load(tmp_path)
    ppfr.save(small("arcface"), tmp_path)
    with pytest.raises(CheckpointError, match="holds a 'arcface' model; expected 'partialface'"):
        load_method(tmp_path, expect="partialface")
