"""Tensors to bytes and back: how they are coded, and the message that holds them. Knows no method and no weights."""

from ppfr.wire.codings import CODINGS, Part, parse_coding
from ppfr.wire.message import Limits, read_message, write_message

__all__ = ["CODINGS", "Limits", "Part", "parse_coding", "read_message", "write_message"]
