"""Looks for images in what was sent: as files, and as runs of pixels in any usual layout and number type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import zstandard
from safetensors.torch import load as load_tensors

from ppfr.data.images import Images

_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = {
    "a PNG file": b"\x89PNG\r\n\x1a\n",
    "a WebP file": b"WEBPVP8",
    "a GIF file": b"GIF8",
    "an EXIF block": b"Exif\x00\x00",
    "a JFIF block": b"JFIF\x00",
    "base64 of a PNG file": b"iVBORw0KGgo",
    "base64 of a JPEG file": b"/9j/4",
    "a data URL": b";base64,",
}
# pixels in a row that must agree, and how many different values make them no accident
_RUN, _VARIED = 12, 6
_LINES = 8
_PIECE = 48


def images_in(sent: bytes, file: bytes, pictures: Sequence[Images]) -> list[str]:
    """What of an image file, or of pictures (H, W, 3) RGB uint8, is in these bytes; an empty list is what to hope for.

    Pixels are looked for along rows and columns, as RGB, BGR, RGBA and single planes, as bytes and as float16, float32
    and float64 in [0,255], [0,1] and [-1,1]; also in what a zstd frame of safetensors holds.
    """
    inside = _unpacked(sent)
    found = [name for name, magic in _MAGIC.items() if any(magic in each for each in (sent, *inside))]
    if any(_holds_jpeg(each) for each in (sent, *inside)):
        found.append("a JPEG file")
    pieces = [file[start : start + _PIECE] for start in range(0, len(file) - _PIECE, 4 * _PIECE)]
    if any(piece in each for each in (sent, *inside) for piece in pieces if len(set(piece)) > _VARIED):
        found.append("a piece of the file")
    haystacks = [each for raw in (sent, *inside) for each in _as_bytes(raw)]
    for number, picture in enumerate(pictures):
        if any(run in haystack for run in _runs(picture) for haystack in haystacks):
            found.append(f"pixels of picture {number}")
    return found


def _unpacked(sent: bytes) -> list[bytes]:
    """The plain content of a message, and its tensors with the bytes of each value side by side."""
    if not sent.startswith(_ZSTD):
        return []
    plain = zstandard.ZstdDecompressor().decompress(sent, max_output_size=1 << 26)
    parts = load_tensors(plain).values()
    # float32 travels as four planes of bytes
    return [plain, *(np.moveaxis(part.numpy(), 1, -1).tobytes() for part in parts if part.ndim > 1)]


def _holds_jpeg(data: bytes) -> bool:
    at = data.find(b"\xff\xd8\xff")
    while at >= 0:
        if cv2.imdecode(np.frombuffer(data, np.uint8, offset=at), cv2.IMREAD_COLOR) is not None:
            return True
        at = data.find(b"\xff\xd8\xff", at + 1)
    return False


def _as_bytes(data: bytes) -> Iterator[bytes]:
    """The data as it is, and read as numbers that might be pixels, as bytes."""
    yield data
    for kind in (np.float16, np.float32, np.float64):
        size = np.dtype(kind).itemsize
        for start in range(min(size, len(data))):
            values = np.frombuffer(data, kind, (len(data) - start) // size, start)
            with np.errstate(all="ignore"):
                for scale, shift in ((1, 0), (255, 0), (127.5, 1)):
                    pixels = np.round((values + shift) * scale)
                    yield np.where(np.abs(pixels) <= 255, pixels, 0).astype(np.uint8).tobytes()


def _runs(picture: Images) -> Iterator[bytes]:
    """Runs of pixels that are no accident, in every layout."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    alpha = np.full_like(grey, 255)
    layouts = [picture, picture[..., ::-1], np.concatenate([picture, alpha], -1), grey]
    layouts += [picture[..., [colour]] for colour in range(3)]
    for layout in layouts:
        for lines in (layout, layout.swapaxes(0, 1)):
            for line in lines[:: max(1, len(lines) // _LINES)]:
                start = (len(line) - _RUN) // 2
                run = line[start : start + _RUN]
                if len(np.unique(run.reshape(_RUN, -1), axis=0)) >= _VARIED:
                    yield run.tobytes()
