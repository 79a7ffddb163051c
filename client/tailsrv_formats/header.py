r"""What a client asks for: the one line that it sends.

    header = START [STOP] "\n"          at most 64 bytes, newline included
    START  = N | -N | end               N below 2**63
    STOP   = COUNT | now

Bytes in; a `Request`, None for "need more", or a `HeaderError` out. Knows nothing of sockets, clocks or files: what
a request means in bytes of the file is worked out by `Request.range`, for an end of the file that the caller names.

The first three lines of the grammar are tailsrv 0.9's; so are the FIN that ends a header as well as a newline does,
the blanks around it, the carriage return and the leading plus sign. The numbers are read by a pattern first: `int`
takes underscores, blanks and other alphabets' digits.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

HEADER_BYTES: Final = 64
"""The newline included, as in 0.9: two numbers of 19 digits fit with room to spare."""

OFFSET_LIMIT: Final = 1 << 63
"""Offsets lie below it: what off_t, and 0.9's i64, can hold. As 0.9 does, we take the i64 -2**63 too."""

NEVER: Final = OFFSET_LIMIT
"""The stop of a request that has none: no file gets there."""

_HEADER: Final = re.compile(
    rb"[ \t\r]*(?:\+?(?P<start>[0-9]+)|-(?P<back>[0-9]+)|end)(?:[ \t]+(?:(?P<count>[0-9]+)|(?P<now>now)))?[ \t\r]*"
)


class HeaderError(ValueError):
    """Bytes that no header begins with; its message says what is wrong with them."""


class Request(msgspec.Struct, frozen=True):
    """A header's meaning."""

    start: int
    """In bytes: from the beginning of the file, or back from its end."""
    from_end: bool = False
    count: int | None = None
    """How many bytes to send; None for no limit."""
    until_now: bool = False
    """Whether to stop where the file ends when the header is read."""

    def range(self, end: int) -> tuple[int, int]:
        """The first byte to send and the one to stop before (`NEVER` for none), for a file that ends at `end`."""
        start = max(0, end - self.start) if self.from_end else self.start
        if self.until_now:
            return start, end
        return start, NEVER if self.count is None else start + self.count

    @property
    def needs_end(self) -> bool:
        """Whether `range` depends on where the file ends."""
        return self.from_end or self.until_now


def parse(received: bytes, *, ended: bool = False) -> Request | None:
    """The request in what a client has sent so far; `ended` when no more will come. None: more is needed.

    What stands behind the newline is none of its business. Raises `HeaderError`.
    """
    line, newline, _ = received[:HEADER_BYTES].partition(b"\n")
    if not newline:
        if len(received) >= HEADER_BYTES:
            raise HeaderError(f"no newline in the first {HEADER_BYTES} bytes")
        if not ended:
            return None
    match = _HEADER.fullmatch(line)
    if match is None:
        raise HeaderError("not of the form START [STOP]" if line.strip() else "empty")
    count = match["count"]
    return Request(
        start=_number(match["start"] or match["back"] or b"0", OFFSET_LIMIT + (match["back"] is not None)),
        from_end=match["start"] is None,
        count=None if count is None else _number(count, OFFSET_LIMIT),
        until_now=match["now"] is not None,
    )


def _number(digits: bytes, limit: int) -> int:
    value = int(digits)
    if value >= limit:
        raise HeaderError("a number beyond 2**63")
    return value
