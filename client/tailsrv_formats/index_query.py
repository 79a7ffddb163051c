"""The protocol of look-ups: parses requests into queries, and renders answers into replies.

    1000                           where message 1000 starts
    -10                            where the 10th message from the end starts; -0 is the end
    {"number": 1000} {"last": 10}  the same, with all that is known about it
    {"offset": 4096}               the message that holds this byte
    {"time": "2026-11-23T09:00:00Z"} {"time": 1795424400.5}
                                   the first message that arrived at this time or later
    {"count": true}                where the stream ends

The caller splits the lines, and removes the newline and a carriage return before it. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple

import msgspec

LINE_BYTES: Final = 256
"""The longest request; the longest useful one has 50 bytes."""

KINDS: Final = ("number", "last", "offset", "time", "count")

FORMS: Final = 'write N, -N, or {"number": N}, {"last": N}, {"offset": B}, {"time": "..."} or {"count": true}'

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_FAR: Final = 1 << 62
"""Beyond any message, byte or nanosecond; larger numbers are reduced to it."""


class Query(NamedTuple):
    """A valid request."""

    kind: str
    """One of `KINDS`."""
    value: int
    """Messages, bytes, or nanoseconds since 1970."""
    is_json: bool


class Malformed(NamedTuple):
    """An invalid request."""

    reason: str
    is_json: bool


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about a message, or about the place of the next one, and about the stream."""

    number: int
    offset: int
    """Bytes."""
    length: int | None
    """Bytes, with prefix or terminator; None if the message has not come yet."""
    time: str | None
    """The message had arrived by this time: UTC, RFC 3339."""
    count: int
    """How many whole messages the stream holds."""
    end: int
    """Where the last of them ends, in bytes."""
    exact: bool = True
    """Whether the indexer saw it arrive; otherwise `time` is when it was indexed."""
    partial: bool = False
    """Whether the stream may have more than `count` messages: the indexer is still reading it."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=0)] | None = None
    last: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] | None = None
    time: Annotated[datetime, msgspec.Meta(tz=True)] | int | float | None = None
    count: bool | None = None


_decode: Final = msgspec.json.Decoder(_Request).decode
_encode: Final = msgspec.json.Encoder().encode


def parse(line: bytes) -> Query | Malformed:
    """The query of a request."""
    # bytes.isdigit knows ASCII's digits only; int() alone would take underscores, blanks and signs.
    if line.isdigit() and len(line) <= LINE_BYTES:
        return Query("number", int(line), False)
    if line[:1] == b"{":
        return _parse_json(line)
    if line[:1] == b"-" and line[1:].isdigit() and len(line) <= LINE_BYTES:
        return Query("last", int(line[1:]), False)
    return Malformed(FORMS, False)


def _parse_json(line: bytes) -> Query | Malformed:
    try:
        request = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Malformed(f"{error}; {FORMS}", True)
    asked = [kind for kind in KINDS if getattr(request, kind) is not None]
    if len(asked) != 1:
        return Malformed(f"exactly one field is expected; {FORMS}", True)
    kind = asked[0]
    value: Any = getattr(request, kind)
    if kind == "time":
        return Query(kind, _nanoseconds(value), True)
    if value is False:
        return Malformed(f"count must be true; {FORMS}", True)
    return Query(kind, int(value), True)


def _nanoseconds(moment: datetime | float) -> int:
    """Nanoseconds since 1970. A time out of range becomes the nearest end of the range."""
    if isinstance(moment, datetime):
        return (moment - _EPOCH) // _MICROSECOND * 1000
    if isinstance(moment, int):
        return max(-_FAR, min(_FAR, moment * 10**9))
    # A double holds microseconds for present times; its binary noise below them would miss a message.
    return round(max(-4e9, min(4e9, moment)) * 10**6) * 1000


def format_time(time: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, cut to microseconds."""
    seconds, nanoseconds = divmod(time, 10**9)
    moment = _EPOCH + seconds * _SECOND
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06d}Z"


def render(answer: Answer) -> bytes:
    """The reply with an answer."""
    # exact and partial are left out if they have their defaults.
    return _encode(answer) + b"\n"


def render_error(reason: str, is_json: bool) -> bytes:
    """The reply that says why there is no answer, in the form of the request. Always ASCII, whatever was sent."""
    said = reason.encode("ascii", "backslashreplace")
    return _encode({"error": said.decode()}) + b"\n" if is_json else b"error: " + said + b"\n"
