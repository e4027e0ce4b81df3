from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.detection.align import CROP_SIZES, align, inverted, moved, scale_of, similarity, template, warp
from ppfr.util.errors import DataError


def umeyama(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The paper's equations 34 to 43, with its singular value decomposition."""
    mean_x, mean_y = points.mean(0), target.mean(0)
    x, y = points - mean_x, target - mean_y
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / (x**2).sum(1).mean()
    return np.column_stack([scale * rotation, mean_y - scale * rotation @ mean_x])


coordinates = st.floats(-500, 500, allow_nan=False, width=32)
faces = st.lists(st.tuples(coordinates, coordinates), min_size=5, max_size=5).map(np.array)


class TestSimilarity:
    @given(faces)
    def test_is_umeyamas(self, points: np.ndarray):
        if np.ptp(points, axis=0).min() < 1:
            return
        expected = umeyama(points, template())
        np.testing.assert_allclose(similarity(points, template()), expected, atol=1e-6 * np.abs(expected).max())

    @given(st.floats(-np.pi, np.pi), st.floats(0.01, 100), coordinates, coordinates)
    def test_finds_the_one_that_was_applied(self, angle: float, scale: float, right: float, down: float):
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        applied = np.column_stack([turn, [right, down]])
        found = similarity(template(), moved(template(), applied))
        np.testing.assert_allclose(found, applied, atol=1e-6 * max(scale, 1))
        assert scale_of(found) == pytest.approx(scale)
        np.testing.assert_allclose(moved(moved(template(), found), inverted(found)), template(), atol=1e-6)

    def test_many_at_once_are_as_each_alone(self):
        points = np.random.default_rng(0).normal(size=(2, 3, 5, 2)) * 30
        together = similarity(points, template())
        assert together.shape == (2, 3, 2, 3)
        for place in np.ndindex(2, 3):
            np.testing.assert_allclose(together[place], similarity(points[place], template()))

    def test_never_mirrors(self):
        mirrored = template() * [-1, 1]
        turn = similarity(mirrored, template())[:, :2]
        assert np.linalg.det(turn) > 0

    @pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
    def test_impossible_landmarks_are_refused(self, points: np.ndarray):
        with pytest.raises(DataError, match="not finite or all in one place"):
            similarity(points, template())


def test_templates_differ_by_a_shift_only():
    assert CROP_SIZES == (112, 128)
    np.testing.assert_allclose(template(128) - template(112), np.tile([8.0, 0.0], (5, 1)))
    with pytest.raises(DataError, match="size is 96; expected 112 or 128"):
        template(96)


def chart(height: int, width: int) -> np.ndarray:
    """Every pixel's column in red and row in green."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, 200)], axis=2).astype(np.uint8)


class TestWarp:
    def test_an_upright_face_of_the_crops_size_is_cut_exactly(self):
        image = chart(240, 250)
        crop = align(image, template() + np.array([40, 30]))
        np.testing.assert_array_equal(crop, image[30:142, 40:152])

    @pytest.mark.parametrize("scale", [0.6, 0.34, 0.21, 0.07])
    @pytest.mark.parametrize("angle", [0.0, 0.4])
    def test_pixels_come_from_where_the_transform_says(self, scale: float, angle: float):
        """A chart is linear, so that averages over any area are the chart's value at its middle."""
        side = int(112 / scale) + 60
        rows, columns = np.mgrid[:side, :side] * (240.0 / side)
        image = np.stack([columns, rows, columns], axis=2).round().astype(np.uint8)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.full(2, (side - 1) / 2)
        transform = np.column_stack([turn, np.full(2, 31.5) - turn @ middle])
        crop = warp(image, transform, 64)
        down, across = np.mgrid[:64, :64]
        source = moved(np.stack([across, down], axis=2).reshape(-1, 2).astype(float), inverted(transform))
        expected = (source * (240.0 / side)).reshape(64, 64, 2)
        inside = (crop[..., 0] > 0) & (source.reshape(64, 64, 2) > 2 / scale).all(2)
        inside &= (source.reshape(64, 64, 2) < side - 2 / scale).all(2)
        assert inside.sum() > 1000
        assert np.abs(crop[..., :2] - expected)[inside].max() < 1.6

    def test_reducing_averages_instead_of_skipping_pixels(self):
        noise = np.random.default_rng(0).integers(0, 256, (1120, 1120, 3), np.uint8)
        ours = align(noise, template() * 10)
        plain = cv2.warpAffine(noise, similarity(template() * 10, template()), (112, 112))
        assert ours[2:-2, 2:-2].std() < 12 < 50 < plain.std()

    def test_outside_of_the_photograph_is_black(self):
        crop = align(np.full((50, 50, 3), 255, np.uint8), template() + 60)
        assert not crop.any()
        crop = align(np.full((112, 112, 3), 255, np.uint8), template() + np.array([56, 0]))
        assert (crop[:, :55] == 255).all() and not crop[:, 57:].any()

    @pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3)])
    def test_any_shape_of_photograph(self, shape: tuple[int, int]):
        image = np.full((*shape, 3), 255, np.uint8)
        for scale in (0.01, 1, 40):
            assert align(image, template() * scale).shape == (112, 112, 3)
