"""Turns the start and the end that a user wrote into byte offsets and counts. Pure: a generator of questions.

Yields `END` (where does the stream end?) or a request for the indexer; is sent the offset or the `Entry`; an
`IndexFailed` may be thrown in. So one plan serves the blocking face and the asyncio one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from tailsrv_client.errors import IndexFailed
from tailsrv_client.protocol.bounds import Byte, Count, FromEnd, Last, Number, Start, Time, Until
from tailsrv_client.protocol.requests import Entry
from tailsrv_formats.position import Position

if TYPE_CHECKING:
    from collections.abc import Generator

END: Final = "end"

Question = Literal["end"] | dict[str, Any]


class Plan(msgspec.Struct, frozen=True):
    """What to read."""

    start: Position
    number: int | None = None
    """The number of the first message, where it is known."""
    stop: int | None = None
    """The first byte that is not wanted."""
    count: int | None = None
    """Messages wanted."""
    until_time: float | None = None
    """Seconds since 1970 at which to ask where the stop is: `find_time`."""
    known_end: int = 0
    """The stream is known to reach this byte."""


def make_plan(
    start: Start, number: int | None, until: Until | None, *, now: float, numbered: bool
) -> Generator[Question, int | Entry, Plan]:
    """Find out what to read. `number` goes with a `start` that comes from a checkpoint; `now` is seconds since 1970.

    `numbered`: the number of the first message has to be known. Raises `IndexFailed` when it can't be.
    """
    position, number = yield from _find_start(start, number)
    stop: int | None = None
    count: int | None = None
    until_time: float | None = None
    known_end = 0
    if isinstance(until, Number):
        numbered = True
    if number is None and numbered:
        number = yield from _find_number(position.offset)
    match until:
        case Byte(place):
            stop = place.offset
        case FromEnd(_):
            stop = known_end = yield from _find_end()
        case Count(messages):
            count = messages
        case Number(end_number):
            count = max(0, end_number - (number or 0))
        case Time(seconds) if seconds <= now:
            stop = known_end = yield from find_time(seconds)
        case Time(seconds):
            until_time = seconds
        case None:
            pass
    return Plan(position, number, stop, count, until_time, known_end)


def find_time(seconds: float) -> Generator[Question, int | Entry, int]:
    """The offset of the first message at or after a past time, or the end of the stream if there is none."""
    try:
        return (yield from _ask({"time": seconds})).offset
    except IndexFailed:
        return (yield from _find_end())


def _find_start(start: Start, number: int | None) -> Generator[Question, int | Entry, tuple[Position, int | None]]:
    match start:
        case Byte(position):
            return position, 0 if position.offset == 0 else number
        case FromEnd(distance):
            offset = max(0, (yield from _find_end()) - distance)
            return Position(offset), None if offset else 0
        case Number(0):
            return Position(0), 0
        case Number(message):
            entry = yield from _ask({"number": message})
        case Last(messages):
            entry = yield from _ask({"last": messages})
        case Time(seconds):
            entry = yield from _ask({"time": seconds})
    return Position(entry.offset), entry.number


def _find_number(offset: int) -> Generator[Question, int | Entry, int]:
    """The number of the message that begins at `offset`, or that holds it."""
    entry = yield from _ask({"count": True})
    if offset == entry.end:
        return entry.count
    return (yield from _ask({"offset": offset})).number


def _find_end() -> Generator[Question, int | Entry, int]:
    answer = yield END
    assert isinstance(answer, int)  # noqa: S101 - tells the type checker what `END` is answered by
    return answer


def _ask(request: dict[str, Any]) -> Generator[Question, int | Entry, Entry]:
    answer = yield request
    assert isinstance(answer, Entry)  # noqa: S101 - the same for a request
    return answer
