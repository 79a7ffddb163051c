r"""The header of the broadcast protocol: the one line that a client sends.

    header = START [STOP] "\n" | where "\n"      at most 64 bytes, newline included
    START  = N | -N | end                        N below 2**63
    STOP   = COUNT | now

`parse` takes the bytes received so far, and returns a `Request` or `WHERE`, or None if it needs more bytes. It raises
`HeaderError` for anything else. This module knows nothing of sockets, clocks or files: `Request.range` computes the
bytes that a request means for an end of the file that the caller passes.

START and COUNT are those of tailsrv 0.9, which treats `where` as a bad header and closes the connection. The following
is also accepted as in 0.9: a FIN instead of the newline, blanks around the header, a carriage return before the
newline, and a plus sign before START. A pattern matches the numbers before `int` converts them, because `int` alone
would accept underscores, blanks and the digits of other alphabets.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

HEADER_BYTES: Final = 64
"""The longest header, newline included, as in 0.9. Two numbers of 19 digits need less."""

OFFSET_LIMIT: Final = 1 << 63
"""All offsets are below it: the range of off_t, and of the i64 in 0.9. As in 0.9, -2**63 is also valid."""

NEVER: Final = OFFSET_LIMIT
"""The stop of a request without STOP: a byte that no file reaches."""

_HEADER: Final = re.compile(
    rb"[ \t\r]*(?:\+?(?P<start>[0-9]+)|-(?P<back>[0-9]+)|end)(?:[ \t]+(?:(?P<count>[0-9]+)|(?P<now>now)))?[ \t\r]*"
)


WHERE_LINE: Final = b"where\n"
"""The header that requests the first byte and the end of the stream."""

_WHERE: Final = re.compile(rb"[ \t\r]*where[ \t\r]*")
_AVAILABLE_RANGE: Final = re.compile(rb"([0-9]{1,19}) ([0-9]{1,19})\r?\n")


class Where(msgspec.Struct, frozen=True):
    """The client requests the first byte and the end of the stream. The answer is `AvailableRange.line`."""


WHERE: Final = Where()


class AvailableRange(msgspec.Struct, frozen=True):
    """The bytes of a stream that are available."""

    first: int
    """The first byte."""
    end: int
    """The byte after the last one that clients may read."""

    def line(self) -> bytes:
        """The answer to `where`."""
        return b"%d %d\n" % (self.first, self.end)


def parse_available_range(line: bytes) -> AvailableRange | None:
    """The content of a server's answer to `where`; None if `line` is not such an answer."""
    match = _AVAILABLE_RANGE.fullmatch(line)
    return None if match is None else AvailableRange(int(match[1]), int(match[2]))


class HeaderError(ValueError):
    """The bytes are not the beginning of any header. The message says what is wrong."""


class Request(msgspec.Struct, frozen=True):
    """A header that requests bytes."""

    start: int
    """In bytes, from the beginning of the file, or backwards from its end."""
    from_end: bool = False
    count: int | None = None
    """The number of bytes to send; None for no limit."""
    until_now: bool = False
    """Whether to stop at the end that the file has when the header is read."""

    def range(self, end: int) -> tuple[int, int]:
        """The first byte to send and the byte to stop before (`NEVER` for no stop), for a file that ends at `end`."""
        start = max(0, end - self.start) if self.from_end else self.start
        if self.until_now:
            return start, end
        return start, NEVER if self.count is None else start + self.count

    @property
    def needs_end(self) -> bool:
        """Whether the result of `range` depends on the end of the file."""
        return self.from_end or self.until_now


def parse(received: bytes, *, ended: bool = False) -> Request | Where | None:
    """Parse the bytes that a client has sent so far. Returns None if the header is incomplete.

    `ended`: the client has sent a FIN. Bytes after the newline are ignored. Raises `HeaderError`.
    """
    line, newline, _ = received[:HEADER_BYTES].partition(b"\n")
    if not newline:
        if len(received) >= HEADER_BYTES:
            raise HeaderError(f"no newline in the first {HEADER_BYTES} bytes")
        if not ended:
            return None
    match = _HEADER.fullmatch(line)
    if match is None:
        if _WHERE.fullmatch(line):
            return WHERE
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
