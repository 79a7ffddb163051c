"""The protocol of look-ups: a line in, a query or the reason why it is none out; an answer in, a line out.

    1000                           where message 1000 starts
    -10                            where the 10th message from the end starts; -0 is the end
    {"number": 1000} {"last": 10}  the same, with all that is known about it
    {"offset": 4096}               the message that holds this byte
    {"time": "2026-11-23T09:00:00Z"} {"time": 1795424400.5}
                                   the first message that arrived then or later
    {"count": true}                where the stream ends

Lines are split off and stripped of their newline, and of a carriage return before it, by the caller. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple

import msgspec

LINE_BYTES: Final = 256
"""No request needs more: the longest sensible one has 50 bytes."""

KINDS: Final = ("number", "last", "offset", "time", "count")

FORMS: Final = 'write N, -N, or {"number": N}, {"last": N}, {"offset": B}, {"time": "..."} or {"count": true}'

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_FAR: Final = 1 << 62
"""Beyond any message, byte or nanosecond that there is; larger numbers are taken for it."""


class Query(NamedTuple):
    """What is asked."""

    kind: str
    """One of `KINDS`."""
    value: int
    """Messages, bytes, or nanoseconds since 1970."""
    is_json: bool


class Malformed(NamedTuple):
    """What is wrong with a line."""

    reason: str
    is_json: bool


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What there is to know about a message, or about the place of the next one, and about the stream."""

    number: int
    offset: int
    """Bytes."""
    length: int | None
    """Bytes, with prefix or terminator; None where the message is yet to come."""
    time: str | None
    """By then it had arrived: UTC, RFC 3339."""
    count: int
    """How many whole messages the stream holds."""
    end: int
    """Where the last of them ends, in bytes."""
    exact: bool = True
    """Whether its arrival was seen; otherwise `time` is when it was indexed."""
    partial: bool = False
    """Whether `count` and `end` are how far the indexer has come; the stream has more, or may have."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=0)] | None = None
    last: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] | None = None
    time: Annotated[datetime, msgspec.Meta(tz=True)] | int | float | None = None
    count: bool | None = None


_decode: Final = msgspec.json.Decoder(_Request).decode
_encode: Final = msgspec.json.Encoder().encode


def parse(line: bytes) -> Query | Malformed:
    """What a line asks for."""
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
        return Malformed(f"one thing at a time; {FORMS}", True)
    kind = asked[0]
    value: Any = getattr(request, kind)
    if kind == "time":
        return Query(kind, _nanoseconds(value), True)
    if value is False:
        return Malformed(f"count is true or not asked; {FORMS}", True)
    return Query(kind, int(value), True)


def _nanoseconds(moment: datetime | float) -> int:
    """Since 1970. What is out of range is taken for its nearest end."""
    if isinstance(moment, datetime):
        return (moment - _EPOCH) // _MICROSECOND * 1000
    if isinstance(moment, int):
        return max(-_FAR, min(_FAR, moment * 10**9))
    # A double has microseconds left for times of our age; its binary noise below them would miss by a message.
    return round(max(-4e9, min(4e9, moment)) * 10**6) * 1000


def format_time(time: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, cut to microseconds."""
    seconds, nanoseconds = divmod(time, 10**9)
    moment = _EPOCH + seconds * _SECOND
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06d}Z"


def render(answer: Answer) -> bytes:
    """The line that says all of it."""
    # exact and partial are left out when they have their defaults: they are news only when they have not.
    return _encode(answer) + b"\n"


def render_error(reason: str, is_json: bool) -> bytes:
    """The line that says why there is no answer, in the language of the request. Always ASCII, whatever was sent."""
    said = reason.encode("ascii", "backslashreplace")
    return _encode({"error": said.decode()}) + b"\n" if is_json else b"error: " + said + b"\n"
