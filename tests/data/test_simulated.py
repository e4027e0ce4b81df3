from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfr.data.protocols.heterogeneous import Domain
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.data.synthetic.sensors import SENSORS, simulate
from ppfr.util.errors import DataError

FACE = SyntheticFaces(1, 1).image(0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("domain", [Domain.NIR, Domain.THERMAL])
def test_one_grey_image_the_same_for_the_same_seed(domain: Domain) -> None:
    image = simulate(FACE, domain, rng())
    assert image.shape == FACE.shape[:2] and image.dtype == np.uint8
    np.testing.assert_array_equal(image, simulate(FACE, domain, rng()))
    assert image.std() > 20


@pytest.mark.parametrize("domain", [Domain.NIR, Domain.THERMAL])
def test_another_seed_changes_the_noise_alone(domain: Domain) -> None:
    difference = simulate(FACE, domain, rng(1)).astype(float) - simulate(FACE, domain, rng(2))
    assert abs(difference.mean()) < 0.3
    # two draws: sqrt(2) times the sensor's noise, less where tones are clipped
    assert 0.8 < difference.std() / (SENSORS[domain].noise * 2**0.5) < 1.1


def test_thermal_is_inverted_and_near_infrared_is_not() -> None:
    red = FACE[:, :, 0].astype(float)
    local = red - simulate_smooth(red)
    assert correlation(local, simulate(FACE, Domain.NIR, rng())) > 0.5
    assert correlation(local, simulate(FACE, Domain.THERMAL, rng())) < -0.3


def simulate_smooth(image: np.ndarray) -> np.ndarray:
    """A plain box mean over a fifth of the image."""
    width = image.shape[0] // 10
    padded = np.pad(image, width, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1))
    return np.asarray(windows.mean(axis=(2, 3)))


def test_red_counts_most_in_near_infrared() -> None:
    channels = []
    for channel in range(3):
        flat = np.zeros((32, 32, 3), np.uint8)
        flat[:, :, channel] = 200
        channels.append(simulate(flat, Domain.NIR, rng()).mean())
    assert channels[0] > channels[1] > channels[2]


def test_shading_by_the_room_is_reduced() -> None:
    ramp = np.linspace(1, 0.3, 112)[None, :, None]
    shaded = (FACE * ramp).astype(np.uint8)

    def sides(image: np.ndarray) -> float:
        return float(image[:, :37].mean() / image[:, -37:].mean())

    before = sides(shaded) / sides(FACE)
    after = sides(simulate(shaded, Domain.NIR, rng())) / sides(simulate(FACE, Domain.NIR, rng()))
    assert after < 1 + 0.6 * (before - 1)


def test_a_larger_photo_gives_the_same_image_but_larger() -> None:
    large = FACE.repeat(2, axis=0).repeat(2, axis=1)
    shrunk = simulate(large, Domain.NIR, rng()).reshape(112, 2, 112, 2).mean(axis=(1, 3))
    assert correlation(shrunk, simulate(FACE, Domain.NIR, rng())) > 0.97


@settings(max_examples=20)
@given(level=st.integers(0, 255), size=st.integers(1, 40), domain=st.sampled_from([Domain.NIR, Domain.THERMAL]))
def test_flat_images_of_any_size_stay_finite(level: int, size: int, domain: Domain) -> None:
    image = simulate(np.full((size, size, 3), level, np.uint8), domain, rng())
    assert image.shape == (size, size)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(DataError, match="cannot simulate visible; expected near-infrared or thermal"):
        simulate(FACE, Domain.VIS, rng())
    with pytest.raises(DataError, match=r"uint8 \(H, W, 3\)"):
        simulate(FACE[:, :, 0], Domain.NIR, rng())
