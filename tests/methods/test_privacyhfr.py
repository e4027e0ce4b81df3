"""PrivacyHFR: both payloads, the network that client and server share, sizes, and the two steps of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

import ppfr
from ppfr.data.sources import open_splits
from ppfr.evaluation.cost import measure_cost
from ppfr.methods.common.files import MODEL_FILE, load_method
from ppfr.recipes.recipe import load_recipe
from ppfr.training.loop import train
from ppfr.training.run import Run
from ppfr.transforms import remove_frequencies
from ppfr.util.errors import CheckpointError, MethodError

SMALL = {"backbone": "mobilefacenet", "width": 0.25, "embedding_size": 32}


def small(**options: object) -> ppfr.Method:
    return ppfr.create("privacyhfr", **SMALL, **{"iterations": 2} | options)


def images(count: int = 2, size: int = 112) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(5)) * 2 - 1


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_step_one_sends_the_hvi_image() -> None:
    payload = small(pattern="none").protect(images())
    assert torch.equal(payload["image"], remove_frequencies(images(), raw_range=True))
    halved = small(pattern="none", raw_range=False).protect(images())
    assert torch.allclose(halved["image"], remove_frequencies(images()))
    assert float((payload["image"] - halved["image"]).abs().max()) > 0.1


def test_a_pattern_comes_to_have_the_images_embedding() -> None:
    image = small(pattern="none")
    target = image.embed(image.protect(images()))
    cosines = []
    for iterations in (1, 60):
        method = small(iterations=iterations)
        payload = method.protect(images(), drawn())
        assert payload["pattern"].shape == (2, 1, 112, 112)
        assert float(payload["pattern"].min()) >= 0 and float(payload["pattern"].max()) <= 1
        cosines.append(F.cosine_similarity(method.embed(payload), target))
    assert bool((cosines[1] > cosines[0] + 0.02).all())


def test_the_cosine_that_ends_the_search_is_the_servers() -> None:
    """What the client computes, norms folded and zero channels left out, is what the server will see."""
    method = small(iterations=30)
    found = method.find_patterns(images(), drawn())
    target = method.server.backbone(remove_frequencies(images(), raw_range=True))
    cosine = F.cosine_similarity(method.embed(method.protect(images(), drawn())), target)
    assert torch.allclose(found.cosine, cosine.detach(), atol=1e-4)
    level = float(found.cosine.min()) - 0.001
    early = small(iterations=30, stop_at=level).find_patterns(images(), drawn())
    assert bool((early.cosine >= level).all()) and int(early.updates.min()) < 30


def test_a_small_pattern_lies_in_the_middle_of_nothing() -> None:
    method = small(pattern_size=64)
    payload = method.protect(images(), drawn())
    assert payload["pattern"].shape == (2, 1, 64, 64)
    canvas = torch.zeros(2, 3, 112, 112)
    canvas[:, 1, 24:88, 24:88] = payload["pattern"][:, 0]
    assert torch.equal(method.embed(payload), method.server.backbone(canvas))


@pytest.mark.parametrize(
    ("backbone", "size", "pattern"),
    [("lightcnn-29v4", 128, (1, 128, 128)), ("mobilefacenet-96", 112, (1, 112, 96)), ("ir18", 112, (1, 112, 112))],
)
def test_sizes_follow_the_recogniser(backbone: str, size: int, pattern: tuple[int, ...]) -> None:
    method = ppfr.create("privacyhfr", backbone, width=0.25, iterations=1)
    assert method.input_size == (size, size)
    payload = method.protect(images(1, size), drawn())
    assert tuple(payload["pattern"].shape[1:]) == pattern
    assert bool(torch.isfinite(method.embed(payload)).all())


def test_client_and_server_share_one_network_and_a_file_holds_it_once(tmp_path: Path) -> None:
    method = small()
    assert method.client.recogniser is method.server.backbone
    ppfr.save(method, tmp_path)
    with safe_open(tmp_path / MODEL_FILE, framework="pt") as stream:
        assert {key.split(".")[0] for key in stream.keys()} == {"server"}  # noqa: SIM118
    back = load_method(tmp_path)
    assert back.client.recogniser is back.server.backbone
    before, after = (one.embed(one.protect(images(), drawn())) for one in (method, back))
    assert torch.equal(before, after)
    cost = measure_cost(method, images(1), drawn(), repeats=1, warmup=0)
    assert cost.client_parameters == cost.server_parameters > 0
    assert cost.client_macs > 4 * cost.server_macs, "two updates are two passes forwards and two backwards, and more"


def test_a_trained_system_may_send_the_other_payload() -> None:
    method = small(pattern="none")
    other = method.with_options(pattern="dra", iterations=3)
    assert set(other.schema.tensors) == {"pattern"}
    assert other.client.recogniser is other.server.backbone
    first, second = (one.server.backbone.first_layer.weight for one in (method, other))
    assert torch.equal(first, second)
    back = other.with_options(pattern="none")
    assert torch.equal(back.embed(back.protect(images())), method.embed(method.protect(images())))
    with pytest.raises(MethodError, match="raw_range cannot change after training"):
        method.with_options(raw_range=False)
    with pytest.raises(MethodError, match="pattern: Input should be 'dra' or 'none'"):
        method.with_options(pattern="avih")


def test_protecting_leaves_the_method_as_it_is() -> None:
    method = small()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with torch.inference_mode():
        inside = method.protect(images(), drawn())
    assert torch.equal(inside["pattern"], method.protect(images(), drawn())["pattern"])
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in method.parameters())


def test_who_sends_images_finds_no_patterns() -> None:
    method = small(pattern="none")
    assert method.client.recogniser is None
    with pytest.raises(MethodError, match="sends HVI images; patterns need"):
        method.find_patterns(images(), drawn())


def test_the_state_of_a_search_belongs_to_its_images(tmp_path: Path) -> None:
    state = tmp_path / "search.safetensors"
    method = small()
    found = method.find_patterns(images(), drawn(), state_file=state)
    assert not state.exists()
    found.save(state, "another search's key")
    with pytest.raises(CheckpointError, match="begun with other images, weights or settings"):
        method.find_patterns(images(), drawn(), state_file=state)


def test_remarks_say_which_payload_was_measured() -> None:
    assert "first step alone" in small(pattern="none").remarks()[0]
    assert "both steps" in small().remarks()[0]


def test_the_classifier_learns_alone_and_then_goes_on_with_the_network(tmp_path: Path) -> None:
    faces, _ = open_splits("synthetic:people=6,images=4")
    settings = {
        "backbone": {"name": "mobilefacenet", "width": 0.25, "embedding_size": 32},
        "training": {"epochs": 1, "batch_size": 8},
        "stages": {"classifier": {"epochs": 2}},
    }
    kept = {}
    for name, epochs in (("classifier", 0), ("all", 1)):
        recipe = load_recipe(
            "privacyhfr", profile="paper", overrides={**settings, "training": {"epochs": epochs, "batch_size": 8}}
        )
        method = ppfr.create("privacyhfr", recipe.backbone_spec(None), recipe.seed, **recipe.options)
        fresh = {key: value.clone() for key, value in method.server.state_dict().items()}
        train(method, recipe, faces, Run(tmp_path / name))
        kept[name] = {
            key for key, value in method.server.state_dict().items() if torch.equal(value, fresh[key])
        } == set(fresh)
    assert kept == {"classifier": True, "all": False}


def test_the_papers_schedule() -> None:
    recipe = load_recipe("privacyhfr", profile="paper", taught=True)
    classifier, network = recipe.stage("classifier"), recipe.stage("all")
    assert (classifier.optimizer.name, classifier.optimizer.lr, classifier.dropout) == ("adam", 0.02, None)
    assert (network.optimizer.name, network.epochs, network.batch_size) == ("sgd", 80, 186)
    assert network.dropout is not None
    rates = [network.dropout.rate(epoch) for epoch in (0, 4, 5, 40, 79)]
    assert rates == pytest.approx([0.6, 0.6, 0.6**0.7, 0.95, 0.95])
    assert recipe.options["pattern"] == "dra"
