"""Tensors to bytes and back: codings, and the message format. Knows no method and no weights."""

from ppfr.wire.codings import CODINGS, TensorType, parse_coding
from ppfr.wire.message import Limits, read_message, write_message

__all__ = ["CODINGS", "Limits", "TensorType", "parse_coding", "read_message", "write_message"]
