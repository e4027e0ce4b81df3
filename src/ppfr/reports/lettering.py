"""Lines of text as small RGB pictures; OpenCV's own lettering knows ASCII only."""

from __future__ import annotations

import io
import textwrap

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_DPI = 72


# of a line's height: what a line takes with the space below it
LINE_SPACING = 1.6


def letter(text: str, height: int, colour: Colour, *, width: int, lines: int, bold: bool = False) -> Images:
    """Text of about `height` pixels a line on white, wrapped to `width` pixels, as RGB uint8 no larger than needed.

    The text is drawn as it is, never as a formula. A word wider than `width` is broken, and what does not fit into
    `lines` becomes an ellipsis.
    """
    from matplotlib.figure import Figure  # slow to import, and only lettering needs it
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", size=height, weight="bold" if bold else "normal")
    wrapped = _wrap(text, max(1, int(width / (0.62 * height))), lines)
    size = width, round((len(wrapped) + 1) * LINE_SPACING * height)
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, facecolor="white")
    drawn = tuple(channel / 255 for channel in colour)
    figure.text(0, 1, "\n".join(wrapped), fontproperties=font, color=drawn, va="top", linespacing=1.2, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="rgba", dpi=_DPI)
    return _trim(np.frombuffer(stream.getvalue(), np.uint8).reshape(size[1], size[0], 4)[..., :3])


def _wrap(text: str, characters: int, lines: int) -> list[str]:
    return textwrap.wrap(text, characters, max_lines=lines, placeholder="…") or [""]


def _trim(picture: Images) -> Images:
    """Cut white margins; of an empty picture one white pixel remains."""
    inked = picture.min(axis=2) < 255
    if not inked.any():
        return np.full((1, 1, 3), 255, np.uint8)
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
