"""The commit mark: how far consumers may read.

`FILE.commit` holds two lines, each a length in 20 decimal digits, a space, the CRC-32 of these 20 bytes in 8
hexadecimal digits, and a newline:

    00000000000000001234 53fd66f2

They are written in turn, each by one pwrite, so that a torn line leaves the other one whole. A reader takes the larger
valid one. A stream without this file is committed as far as it goes.
"""

from __future__ import annotations

import zlib
from typing import Final

LINE_BYTES: Final = 30
MARK_BYTES: Final = 2 * LINE_BYTES
SUFFIX: Final = ".commit"


def encode_line(length: int) -> bytes:
    """One line that says `length` (bytes, below 10**20)."""
    digits = b"%020d" % length
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def decode_line(line: bytes) -> int | None:
    """The length that a line says; None when it is torn, or no line at all."""
    digits = line[:20]
    if not digits.isdigit() or line != b"%s %08x\n" % (digits, zlib.crc32(digits)):
        return None
    return int(digits)


def decode(content: bytes) -> int | None:
    """The mark that the file's first `MARK_BYTES` say; None when neither line is valid."""
    first = decode_line(content[:LINE_BYTES])
    second = decode_line(content[LINE_BYTES:MARK_BYTES])
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)
