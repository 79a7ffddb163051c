"""A stream in which every byte tells its offset: 8-byte words that count."""

from __future__ import annotations

import struct
from typing import Final

WORD: Final = 8


def content(offset: int, length: int) -> bytes:
    """The bytes at these offsets."""
    first, last = offset // WORD, -(-(offset + length) // WORD)
    words = struct.pack(f">{last - first}Q", *range(first, last))
    begin = offset - first * WORD
    return words[begin : begin + length]
