"""Tensors in, tensors out, no weights: colour spaces and the block-DCT front end."""

from __future__ import annotations

from ppfr.transforms.bandstop import remove_frequencies
from ppfr.transforms.color import rgb_to_ycbcr, ycbcr_to_rgb
from ppfr.transforms.dct import block_dct, frequency_matrix, inverse_block_dct, round_trip_matrix

__all__ = [
    "block_dct",
    "frequency_matrix",
    "inverse_block_dct",
    "remove_frequencies",
    "rgb_to_ycbcr",
    "round_trip_matrix",
    "ycbcr_to_rgb",
]
