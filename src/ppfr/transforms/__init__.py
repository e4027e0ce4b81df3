"""Tensors in, tensors out, no weights: colour spaces and the block-DCT front end."""

from __future__ import annotations

from ppfr.transforms.color import rgb_to_ycbcr, ycbcr_to_rgb
from ppfr.transforms.dct import block_dct, frequency_matrix, inverse_block_dct

__all__ = ["block_dct", "frequency_matrix", "inverse_block_dct", "rgb_to_ycbcr", "ycbcr_to_rgb"]
