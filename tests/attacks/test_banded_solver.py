"""The local solver against dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppfr.attacks.inverse.banded_solver import LocalOperator, LocalSystem, conjugate_gradients, square
from ppfr.attacks.inverse.face_prior import divergence, gradients, to_images, to_planes
from ppfr.util.errors import AttackError

HEIGHT, WIDTH = 9, 8


def random_operator(reach: int, coupled: bool, seed: int) -> LocalOperator:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    stencils, channels = [], []
    for plane in range(3):
        channels.append(torch.tensor([0, 1, 2, 3]) if coupled else torch.tensor([2 * plane, 2 * plane + 1]))
        weights = torch.randn(
            len(channels[-1]), (2 * reach + 1) ** 2, HEIGHT, WIDTH, dtype=torch.float64, generator=generator
        )
        for position, (dy, dx) in enumerate(square(reach)):
            inside = (rows + dy).clamp(0, HEIGHT - 1).eq(rows + dy) & (columns + dx).clamp(0, WIDTH - 1).eq(
                columns + dx
            )
            weights[:, position] *= inside
        stencils.append(weights)
    return LocalOperator(reach, channels, stencils)


def dense(apply, size: int) -> Tensor:
    """The matrix of a linear function of planes, column by column."""
    unit = torch.eye(size, dtype=torch.float64).view(size, 3, HEIGHT, WIDTH)
    return apply(unit).flatten(1).T


UNKNOWNS = 3 * HEIGHT * WIDTH


@settings(max_examples=6, deadline=None)
@given(reach=st.integers(0, 2), coupled=st.booleans(), seed=st.integers(0, 1000))
def test_factor_gram_adjoint_and_probe_agree_with_dense_matrices(reach: int, coupled: bool, seed: int) -> None:
    channels = 4 if coupled else 6
    operator = random_operator(reach, coupled, seed)
    matrix = dense(lambda planes: operator.apply(planes, channels), UNKNOWNS)
    generator = torch.Generator().manual_seed(seed)
    sent = torch.randn(2, channels, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(operator.adjoint(sent).flatten(1), sent.flatten(1) @ matrix)

    weights = torch.rand(channels, dtype=torch.float64, generator=generator) + 0.5
    system = operator.gram(weights)
    for plane in range(3):
        system.add(plane, plane, (0, 0), 0.7)
        system.add_smoothness(plane, 0.3)
    spread = weights.repeat_interleave(HEIGHT * WIDTH)
    differences = dense(lambda planes: torch.cat([part.flatten(1) for part in gradients(planes)], 1), UNKNOWNS)
    expected = matrix.T @ (spread[:, None] * matrix) + 0.3 * differences.T @ differences
    expected += 0.7 * torch.eye(UNKNOWNS)
    torch.testing.assert_close(dense(system.apply, UNKNOWNS), expected)

    right = torch.randn(3, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)
    solution = system.factor().solve(right)
    torch.testing.assert_close(solution.flatten(1), torch.linalg.solve(expected, right.flatten(1).T).T)
    iterative = conjugate_gradients(system.apply, right, torch.zeros_like(right), lambda x: x, 600, 1e-12)
    torch.testing.assert_close(iterative, solution, rtol=1e-6, atol=1e-8)

    probed = LocalOperator.probe(lambda planes: operator.apply(planes, channels), right[0])
    assert probed is not None
    torch.testing.assert_close(probed.apply(right, channels), operator.apply(right, channels))


def test_probe_refuses_what_is_not_local() -> None:
    like = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    assert LocalOperator.probe(lambda planes: planes.flip(3), like) is None
    assert LocalOperator.probe(lambda planes: planes[..., ::2, ::2], like) is None
    # local almost everywhere: the check with noise finds the pixel that is not
    assert LocalOperator.probe(lambda planes: planes + 0 * planes + _far_corner(planes), like) is None


def _far_corner(planes: Tensor) -> Tensor:
    far = torch.zeros_like(planes)
    far[..., 0, 0] = planes[..., -1, -1]
    return far


def test_systems_that_are_alike_are_recognised() -> None:
    operator = random_operator(1, False, 0)
    weights = torch.ones(6, dtype=torch.float64)
    system = operator.gram(weights)
    assert system.equals(operator.gram(weights * (1 + 1e-13)))
    assert not system.equals(operator.gram(weights * 1.001))
    assert not system.equals(random_operator(1, True, 0).gram(torch.ones(4, dtype=torch.float64)))


def test_a_singular_system_is_refused() -> None:
    system = LocalSystem(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64), 1)
    for plane in range(3):
        system.add_smoothness(plane, 1.0)
        system.add(plane, plane, (0, 0), -1e-3)
    with pytest.raises(AttackError, match=r"not positive definite.*`precision`"):
        system.factor()
    with pytest.raises(AttackError, match=r"offset \(2, 0\) is beyond"):
        system.add(0, 0, (2, 0), 1.0)


def test_divergence_is_the_adjoint_of_gradients_and_planes_invert(generator: torch.Generator) -> None:
    planes = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)
    edges = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in gradients(planes)]
    one = sum(float((a * b).sum()) for a, b in zip(gradients(planes), edges, strict=True))
    assert one == pytest.approx(float((planes * divergence(edges[0], edges[1])).sum()))
    torch.testing.assert_close(to_planes(to_images(planes)), planes)
