"""A position in a stream: a byte offset, and a digest that identifies the stream."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

CHECKED_BYTES: Final = 64
"""The bytes before a position that identify the stream that was read."""


class Position(msgspec.Struct, frozen=True):
    """Where to go on: the byte offset, and the digest of the up to 64 bytes before it ("": not known, not checked)."""

    offset: int
    digest: str = ""


def digest(tail: bytes) -> str:
    """BLAKE2b of the up to 64 bytes before a position: 32 hexadecimal digits."""
    return hashlib.blake2b(tail[-CHECKED_BYTES:], digest_size=16).hexdigest()
