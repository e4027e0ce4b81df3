from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ppfr.data.images import decode_image, read_image, to_tensor
from ppfr.util.errors import DataError


def picture(height: int = 112, width: int = 112, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """A smooth picture with different colours in its corners, as OpenCV orders channels."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [down, across, 1 - down, np.full_like(down, 0.5)][:channels]
    return np.squeeze(np.stack(planes, axis=2) * np.iinfo(dtype).max).astype(dtype)


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_png_comes_back_as_rgb():
    image = picture()
    np.testing.assert_array_equal(decode_image(encode(image)), image[:, :, ::-1])


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp", ".tiff"])
def test_every_format(suffix: str):
    image = decode_image(encode(picture(), suffix))
    assert image.shape == (112, 112, 3)
    assert np.abs(image.astype(int) - picture()[:, :, ::-1]).mean() < 4


def test_grey_becomes_three_equal_channels():
    image = decode_image(encode(picture(channels=1)))
    assert image.shape == (112, 112, 3)
    np.testing.assert_array_equal(image, picture(channels=1)[:, :, None].repeat(3, axis=2))


def test_alpha_is_dropped():
    np.testing.assert_array_equal(decode_image(encode(picture(channels=4))), picture()[:, :, ::-1])


def test_sixteen_bits_become_eight():
    wide = picture(dtype=np.uint16)
    image = decode_image(encode(wide))
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - (wide[:, :, ::-1] / 257)).max() <= 1


@pytest.mark.parametrize(("shift", "suffix"), [(4, ".png"), (6, ".tiff")])
def test_a_sensors_bits_in_a_sixteen_bit_file_are_refused(shift: int, suffix: str):
    narrow = picture(channels=1, dtype=np.uint16) >> shift
    with pytest.raises(DataError, match=rf"16-bit values lie within 0\.\.{65535 >> shift} .*stretch them"):
        decode_image(encode(narrow, suffix))


def test_a_thermal_cameras_window_is_refused():
    window = 7000 + (picture(channels=1, dtype=np.uint16) >> 5)
    with pytest.raises(DataError, match=r"7000\.\.9047"):
        decode_image(encode(window))


def test_cmyk_jpeg_becomes_rgb():
    image_module = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK file")
    import io

    buffer = io.BytesIO()
    image_module.fromarray(picture()[:, :, ::-1].copy()).convert("CMYK").save(buffer, "JPEG", quality=95)
    image = decode_image(buffer.getvalue())
    assert np.abs(image.astype(int) - picture()[:, :, ::-1]).mean() < 12


def test_square_images_are_resized_and_keep_their_corners():
    for side in (56, 250):
        image = decode_image(encode(picture(side, side)))
        assert image.shape == (112, 112, 3)
        assert np.abs(image.astype(int) - picture()[:, :, ::-1]).mean() < 2


def test_size_none_keeps_any_shape():
    assert decode_image(encode(picture(60, 90)), None).shape == (60, 90, 3)


def test_oblong_images_are_refused():
    with pytest.raises(DataError, match=r"90 x 60 is not square, so not an aligned crop; align it to 112 x 112"):
        decode_image(encode(picture(60, 90)))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9])
def test_a_cut_file_is_never_half_an_image(suffix: str, part: float):
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    data = encode(noise, suffix)
    with pytest.raises(DataError):
        decode_image(data[: int(part * len(data))])


def test_a_jpeg_with_bytes_after_its_end_is_whole():
    data = encode(picture(), ".jpg")
    np.testing.assert_array_equal(decode_image(data + b"\0" * 100), decode_image(data))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.jpg: file not found"):
        read_image(tmp_path / "gone.jpg")


def test_to_tensor_is_the_recognisers_normalisation():
    images = np.array([0, 127, 255], np.uint8).repeat(3).reshape(1, 1, 3, 3)
    expected = (images / 255 - 0.5) / 0.5
    tensor = to_tensor(images)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_to_tensor_refuses_floats_and_channels_first():
    with pytest.raises(DataError, match=r"float64 \(1, 4, 4, 3\); expected uint8 \(N, H, W, 3\)"):
        to_tensor(np.zeros((1, 4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected uint8 \(N, H, W, 3\)"):
        to_tensor(np.zeros((1, 3, 112, 112), np.uint8))
