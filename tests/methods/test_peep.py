"""PEEP: eigenfaces against an exact decomposition, and noise against the promise of its budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ppfr
from ppfr.methods import Method
from ppfr.util.errors import MethodError

COMPONENTS = 5


def small(**options: object) -> Method:
    settings = {"components": COMPONENTS, **options}
    return ppfr.create("peep", "mobilefacenet", width=0.25, embedding_size=32, **settings)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Images made of a few patterns of falling strength, and a little noise."""
    patterns = torch.randn((8, 3, 112, 112), generator=drawn(1))
    amounts = torch.randn((40, 8), generator=drawn(2)) * torch.tensor([8.0, 7, 6, 5, 4, 0.1, 0.1, 0.1])
    mixed = torch.einsum("np,pchw->nchw", amounts, patterns)
    return (mixed / mixed.abs().max()).clamp(-1, 1)


def fitted(faces: Tensor, **options: object) -> Method:
    method = small(**options)
    method.client.fit(faces, drawn())
    return method


def test_eigenfaces_span_what_an_exact_decomposition_does(faces: Tensor) -> None:
    client = fitted(faces).client
    centred = (faces - faces.mean(0)).flatten(1).double()
    exact = torch.linalg.svd(centred, full_matrices=False).Vh[:COMPONENTS]
    basis = client.basis.double()
    assert torch.allclose(basis @ basis.T, torch.eye(COMPONENTS).double(), atol=1e-4)
    # cosines of the angles between the two subspaces
    assert float(torch.linalg.svdvals(exact @ basis.T).min()) > 0.9999


def test_without_noise_it_is_the_projection(faces: Tensor) -> None:
    method = fitted(faces, epsilon="inf")
    sent = method.protect(faces)["image"].flatten(1)
    centred = faces.flatten(1) - faces.flatten(1).mean(0)
    wanted = faces.flatten(1).mean(0) + centred @ method.client.basis.T @ method.client.basis
    assert torch.allclose(sent, wanted, atol=1e-4)
    assert method.remarks()[0].startswith("epsilon is infinite")
    (client,) = method.hypotheses()
    assert torch.equal(client.apply(faces)["image"].flatten(1), sent)


def test_noise_is_calibrated_to_each_range(faces: Tensor) -> None:
    method = fitted(faces, epsilon=2.0)
    client = method.client
    many = faces[:1].expand(4000, -1, -1, -1)
    clean = client.coefficients(faces[:1])
    with torch.no_grad():
        noisy = torch.cat(
            [
                (method.protect(part, drawn(seed))["image"].flatten(1) - client.mean) @ client.basis.T
                for seed, part in enumerate(torch.split(many, 500))
            ]
        )
    spread = (noisy - clean).abs().mean(0)  # of Laplace noise, its scale
    ranges = client.high - client.low
    # the mean of 4,000 draws lies within 8 % of the scale but for once in a million
    assert torch.allclose(spread, ranges / 2.0, rtol=0.08)


def test_coefficients_stay_within_their_ranges(faces: Tensor) -> None:
    client = fitted(faces).client
    far = client.coefficients(torch.ones(1, 3, 112, 112))
    assert bool((far <= client.high).all()) and bool((far >= client.low).all())


def test_the_fit_follows_the_generator_and_leaves_the_global_one(faces: Tensor) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = fitted(faces).client.basis
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(fitted(faces).client.basis, first)


def test_the_stage_fits_on_as_many_images_as_asked(faces: Tensor) -> None:
    method = small(images=30)
    (stage,) = method.stages()
    assert stage.calibrate is not None and stage.sample == 30
    stage.calibrate(faces, drawn())
    assert torch.allclose(method.client.mean, faces[:30].flatten(1).mean(0), atol=1e-6)


def test_the_budget_is_reported() -> None:
    assert small(epsilon=2).remarks()[0] == "epsilon 2 a coefficient, 10 in sum for an image of 5 coefficients"


def test_too_few_faces_are_refused(faces: Tensor) -> None:
    with pytest.raises(MethodError, match="5 eigenfaces cannot be fitted on 4 images"):
        small().client.fit(faces[:4], drawn())
