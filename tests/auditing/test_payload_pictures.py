"""Pictures of payloads."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppfr.auditing.payload_pictures import BACKGROUND, MOST_TILES, describe_payload, payload_picture
from ppfr.data.images import to_tensor
from ppfr.methods import Payload, PayloadSchema, TensorSpec, create
from ppfr.util.errors import PayloadError, ShapeError


def payload_of(meaning: str = "", **tensors: Tensor) -> Payload:
    specs = {name: TensorSpec(tuple(tensor.shape[1:]), meaning, tensor.dtype) for name, tensor in tensors.items()}
    return Payload(PayloadSchema("test", specs), tensors)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tiles(picture: np.ndarray) -> int:
    """How many rectangles stand on the background, counted from the pixels."""
    count, _ = cv2.connectedComponents((picture != BACKGROUND).any(axis=2).astype(np.uint8), connectivity=4)
    return count - 1


def flat(channels: int, side: int = 40) -> Tensor:
    """Constant channels: each tile is one plain grey rectangle."""
    return torch.full((1, channels, side, side), 7.0)


class TestPayloadPicture:
    def test_an_image_is_shown_as_it_is(self) -> None:
        images = noise(2, 112, 112, 3)
        payload = payload_of(image=to_tensor(images))
        np.testing.assert_array_equal(payload_picture(payload, 1, size=112), images[1])
        assert describe_payload(payload) == "the image as it is, 112×112 RGB"

    def test_an_image_from_zero_to_one_is_not_washed_out(self) -> None:
        images = noise(1, 112, 112, 3)
        payload = payload_of(image=torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        np.testing.assert_array_equal(payload_picture(payload, size=112), images[0])

    def test_bytes_of_three_channels_are_an_image(self) -> None:
        colours = torch.tensor([255, 51, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 16, 16)
        picture = payload_picture(payload_of(image=colours), size=64)
        assert (picture == np.array([255, 51, 0])).all()

    def test_a_faint_image_is_stretched(self) -> None:
        """What can be seen after raising the contrast must not be hidden from a reader."""
        images = to_tensor(noise(1, 112, 112, 3))
        payload = payload_of(image=0.5 + 0.01 * images)
        assert describe_payload(payload) == "a faint image, 112×112 RGB, stretched to its own contrast"
        assert payload_picture(payload, size=112).std() > 60
        assert describe_payload(payload_of(image=0.0 * images)).startswith("the image as it is")

    def test_an_image_beyond_the_range_of_images_is_squeezed_with_all_colours_alike(self) -> None:
        image = torch.zeros(1, 3, 112, 112)
        image[:, 0, :56], image[:, 1, :56], image[:, 2, :56] = 5.0, 2.5, -5.0
        payload = payload_of(image=image)
        assert describe_payload(payload).startswith("an image beyond black and white, 112×112 RGB")
        picture = payload_picture(payload)
        assert picture[20, 100].tolist() == [255, 191, 0]
        assert picture[200, 100].tolist() == [128, 128, 128]

    def test_three_channels_beyond_the_range_of_images_are_channels(self) -> None:
        payload = payload_of(channels=5 * torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
        assert describe_payload(payload).startswith("3 channels of 112×112")
        assert tiles(payload_picture(payload_of(channels=flat(3)))) == 3

    @pytest.mark.parametrize("channels", [2, 9, 27, 36, 37, 54, 162, 189, 192])
    def test_the_caption_counts_what_the_picture_shows(self, channels: int) -> None:
        payload = payload_of("noise", channels=flat(channels))
        picture, caption = payload_picture(payload), describe_payload(payload)
        assert picture.shape == (224, 224, 3)
        assert picture.dtype == np.uint8
        found = re.search(r"of which (\d+), evenly selected, are shown", caption)
        shown = int(found.group(1)) if found else channels
        assert tiles(picture) == shown <= MOST_TILES
        assert (found is None) == (channels <= MOST_TILES)
        assert caption.startswith(f"{channels} channels of 40×40 – noise – ")

    @given(channels=st.integers(2, 300), maps=st.integers(0, 5), size=st.integers(64, 320))
    @settings(max_examples=60, deadline=None)
    def test_any_payload_fits_its_picture(self, channels: int, maps: int, size: int) -> None:
        strip = {f"map{index}": torch.zeros(1, 1, 7, 7) for index in range(maps)}
        payload = payload_of(channels=flat(channels, 12), **strip)
        picture, caption = payload_picture(payload, size=size), describe_payload(payload, size=size)
        found = re.search(r"of which (\d+), evenly", caption)
        assert picture.shape == (size, size, 3)
        assert tiles(picture) == (int(found.group(1)) if found else channels) + maps
        assert (f"{maps} map" in caption) == (maps > 0)

    def test_a_selection_runs_from_the_first_channel_to_the_last(self) -> None:
        channels = torch.zeros(1, 100, 30, 30)
        channels[:, 0, :, 15:] = 1
        channels[:, -1, 15:] = 1
        picture = payload_picture(payload_of(channels=channels), size=240)
        greys = picture[(picture != BACKGROUND).any(axis=2)]
        rows, columns = np.nonzero((picture == 0).all(axis=2) | (picture == 255).all(axis=2))
        assert {0, 255} <= set(greys.ravel().tolist())
        assert rows.min() < 60
        assert rows.max() > 180
        assert columns.min() < 60
        assert columns.max() > 180

    @pytest.mark.parametrize("factor", [1e-3, 250.0])
    def test_each_channel_has_its_own_contrast(self, factor: float) -> None:
        channels = torch.randn(1, 27, 56, 56, generator=torch.Generator().manual_seed(0))
        scaled = channels * torch.logspace(-2, 2, 27)[:, None, None] * factor
        difference = payload_picture(payload_of(a=channels)).astype(int) - payload_picture(payload_of(a=scaled))
        assert np.abs(difference).max() <= 1

    def test_maps_stand_in_a_strip_below_the_channels(self) -> None:
        low = torch.linspace(0, 1, 49).reshape(1, 1, 7, 7)
        payload = payload_of(channels=flat(162, 112), map0=torch.rand(1, 1, 56, 56), map1=low, map2=low, map3=low)
        picture = payload_picture(payload)
        coloured = np.ptp(picture.astype(int), axis=2) > 30
        assert coloured[200].any()
        assert not coloured[:160].any()
        assert describe_payload(payload).endswith("4 maps (56×56, 3 of 7×7), bright where large")

    def test_mixed_payloads_share_the_square(self) -> None:
        parts = {f"level{index}": flat(64 << index, 56 >> index) for index in range(3)}
        payload = payload_of(blurred=torch.full((1, 3, 112, 112), -0.5), **parts, code=torch.arange(130.0)[None])
        picture, caption = payload_picture(payload), describe_payload(payload)
        assert picture.shape == (224, 224, 3)
        assert [part.split(",")[0] for part in caption.split("; ")] == [
            "the image as it is",
            "64 channels of 56×56",
            "128 channels of 28×28",
            "256 channels of 14×14",
            "1 map (11×12)",
        ]

    def test_a_lone_map_fills_the_picture(self) -> None:
        picture = payload_picture(payload_of(pattern=torch.rand(1, 1, 128, 128)), size=128)
        assert not (picture == BACKGROUND).all(axis=2).any()

    def test_integers_and_constants_are_drawn(self) -> None:
        grey = payload_picture(payload_of(codes=torch.full((1, 8, 9, 9), 3, dtype=torch.uint8)))
        assert set(np.unique(grey)) == {128, *BACKGROUND}

    def test_methods_payloads(self) -> None:
        method = create("partialface", backbone="mobilefacenet")
        payload = method.protect(torch.rand(2, 3, 112, 112) * 2 - 1, torch.Generator().manual_seed(0))
        first, second = (payload_picture(payload, row) for row in (0, 1))
        assert tiles(first) == tiles(second) == 27
        assert (first != second).any()

    def test_refusals(self) -> None:
        payload = payload_of(channels=flat(4))
        with pytest.raises(PayloadError, match=r"row 1 is not in a payload of 1 images; expected 0\.\.0"):
            payload_picture(payload, 1)
        with pytest.raises(ShapeError, match="63 pixels is too small; expected size >= 64"):
            payload_picture(payload, size=63)
        with pytest.raises(PayloadError, match=r"\(4, 8, 8\) holds values that are not finite"):
            payload_picture(payload_of(channels=torch.full((1, 4, 8, 8), torch.nan)))
