"""The indexer's protocol as its client sees it: requests out, entries in. Pure.

Every request is sent in its JSON form, whose reply says all that is known.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tailsrv_client.errors import IndexFailed

LINE_BYTES: Final = 1 << 16
"""No reply is as long; one that is comes from something that is no indexer."""


class Entry(msgspec.Struct, frozen=True):
    """What the indexer knows about a message, and about the stream."""

    number: int
    """The first message is number 0."""
    offset: int
    """Where it starts, in bytes."""
    length: int | None = None
    """Its bytes, terminator or prefix included; None for the message that will come next."""
    time: str | None = None
    """When the indexer saw it, RFC 3339."""
    count: int = 0
    """Messages in the stream."""
    end: int = 0
    """Where the last of them ends, in bytes."""


class _Failure(msgspec.Struct):
    error: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode
_decode_failure: Final = msgspec.json.Decoder(_Failure).decode


def encode(request: dict[str, Any]) -> bytes:
    """The line for ``{"number": N}``, ``{"last": N}``, ``{"offset": B}``, ``{"time": T}``, ``{"count": true}``."""
    return _encode(request) + b"\n"


def decode(line: bytes) -> Entry:
    """What a reply says. Raises `IndexFailed` with the indexer's words, or when it is no reply of an indexer."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # the other thing that a reply may be
    try:
        raise IndexFailed(_decode_failure(line).error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        shown = ascii(line[:80].decode("latin-1"))
        raise IndexFailed(f"no reply of an indexer: {shown}; check the address") from None
