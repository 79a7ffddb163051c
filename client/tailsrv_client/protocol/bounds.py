"""The start and the end of reading, as users write them. Pure except for the clock of relative times.

    start   start   end   BYTE   -BYTES   message:N   last:N   time:T         (default: start)
    until   now   BYTE   message:N   time:T   count:N                       (default: never)

`until` names the first message that is no longer wanted. T is seconds since 1970, RFC 3339 ("2026-11-23T09:00:00Z"), or
a duration before now ("-1h", "2h ago").
"""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from tailsrv_client.protocol.reader import LARGEST_OFFSET
from tailsrv_formats.errors import UsageError
from tailsrv_formats.position import Position
from tailsrv_formats.quantities import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = TypeVar("Kind")

_START_WORDS: Final = "start, end, BYTE, -BYTES, message:N, last:N, time:T"
_UNTIL_WORDS: Final = "now, BYTE, message:N, time:T, count:N"


class Byte(msgspec.Struct, frozen=True):
    """At this position."""

    position: Position


class FromEnd(msgspec.Struct, frozen=True):
    """`bytes` before the end that the stream has when it is asked."""

    bytes: int


class Number(msgspec.Struct, frozen=True):
    """At message `number`; the first one is 0."""

    number: int


class Last(msgspec.Struct, frozen=True):
    """At the message that is `messages` before the end."""

    messages: int


class Time(msgspec.Struct, frozen=True):
    """At the first message that arrived at or after this time, in seconds since 1970."""

    seconds: float


class Count(msgspec.Struct, frozen=True):
    """After `messages` messages."""

    messages: int


Start = Byte | FromEnd | Number | Last | Time
Until = Byte | FromEnd | Number | Time | Count


def parse_start(start: str | int | Position) -> Start:
    """What `start` means: text, a byte offset (negative: bytes before the end) or a position. Raises `UsageError`."""
    if isinstance(start, Position):
        return Byte(start)
    if isinstance(start, int):
        return Byte(Position(start)) if start >= 0 else FromEnd(-start)
    if start in {"start", "end"}:
        return Byte(Position(0)) if start == "start" else FromEnd(0)
    word, colon, value = start.partition(":")
    if not colon:
        digits = start.removeprefix("-")
        number = _number(digits, start, _START_WORDS)
        return Byte(Position(number)) if digits == start else FromEnd(number)
    return _with_word({"message": Number, "last": Last}, word, value, start, _START_WORDS)


def parse_until(until: str | int | None) -> Until | None:
    """What `until` means; None: never. Raises `UsageError`."""
    if until is None:
        return None
    if isinstance(until, int):
        until = str(until)
    if until == "now":
        return FromEnd(0)
    word, colon, value = until.partition(":")
    if not colon:
        return Byte(Position(_number(until, until, _UNTIL_WORDS)))
    return _with_word({"message": Number, "count": Count}, word, value, until, _UNTIL_WORDS)


def parse_time(text: str, now: float | None = None) -> float:
    """Seconds since 1970 of RFC 3339, of such seconds themselves, or of a duration before `now`: ``-1h``, ``2h ago``.

    A time without a zone is UTC. `now`: seconds since 1970; None: the system's clock. Raises `UsageError`.
    """
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 20:
        return float(text)
    duration = text[1:] if text.startswith("-") else text.removesuffix(" ago")
    try:
        if duration != text:
            return max(0.0, (time.time() if now is None else now) - parse_duration(duration))
        parsed = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a time; write 2026-11-23T09:00:00Z, seconds since 1970, -1h or '2h ago'"
        ) from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.UTC)
    return parsed.timestamp()


def _with_word(kinds: dict[str, Callable[[int], Kind]], word: str, value: str, text: str, words: str) -> Kind | Time:
    if word == "time":
        return Time(parse_time(value))
    if word not in kinds:
        raise _unknown(text, words)
    return kinds[word](_number(value, text, words))


def _number(digits: str, text: str, words: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19) or int(digits) > LARGEST_OFFSET:
        raise _unknown(text, words)
    return int(digits)


def _unknown(text: str, words: str) -> UsageError:
    return UsageError(f"{text!r} is not a valid start or end; write one of {words}")
