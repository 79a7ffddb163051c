r"""What a client asks for: the one line that it sends.

    header = START [STOP] "\n" | where "\n"      at most 64 bytes, newline included
    START  = N | -N | end                        N below 2**63
    STOP   = COUNT | now

Bytes in; a `Request` or `WHERE`, None for "need more", or a `HeaderError` out. Knows nothing of sockets, clocks or
files: which bytes of the file a request means is worked out by `Request.range`, for an end of the file that the caller
names.

START and COUNT are those of tailsrv 0.9, which closes the connection for `where` as for any bad header. The FIN that
ends a header as well as a newline does, the blanks around it, the carriage return and the leading plus sign are 0.9's,
too. The numbers are matched by a pattern first: `int` accepts underscores, blanks and other alphabets' digits.
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


WHERE_LINE: Final = b"where\n"
"""The header that asks how far the stream reaches."""

_WHERE: Final = re.compile(rb"[ \t\r]*where[ \t\r]*")
_REACH: Final = re.compile(rb"([0-9]{1,19}) ([0-9]{1,19})\r?\n")


class Where(msgspec.Struct, frozen=True):
    """The client asks which bytes there are: the answer is `Reach.line`."""


WHERE: Final = Where()


class Reach(msgspec.Struct, frozen=True):
    """Which bytes of a stream there are."""

    first: int
    """The first byte that is available."""
    end: int
    """How far clients may read."""

    def line(self) -> bytes:
        """The answer to `where`."""
        return b"%d %d\n" % (self.first, self.end)


def parse_reach(line: bytes) -> Reach | None:
    """What a server says in answer to `where`; None when that is no such answer."""
    match = _REACH.fullmatch(line)
    return None if match is None else Reach(int(match[1]), int(match[2]))


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


def parse(received: bytes, *, ended: bool = False) -> Request | Where | None:
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
