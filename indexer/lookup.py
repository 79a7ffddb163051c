"""Answers to queries: a bisection in the index, one bounded read of the stream, and a walk over what was read.

An entry is used only when the stream bears it out: its fingerprint is that of the bytes before it, and from it to the
next one there are as many messages as the two say. So a damaged index, or a stream that was rewritten, gives no answer
(`MismatchError`) rather than a wrong one. Before that, its numbers are compared with how far the stream is known: none
of them reaches a read, a slice or a sum before it is known to be in range and in order.

All boundaries that an entry is responsible for lie within one interval behind it, because the first one behind that
has an entry of its own: the read is bounded by two intervals, however long the messages are.

Knows no sockets, and of files only a function that reads the stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from indexer.errors import MismatchError, UnknownError
from indexer.walker import PREFIX_MAX_BYTES
from tailsrv_formats.framing import FramingError
from tailsrv_formats.index_file import CONTEXT_BYTES, Entry, decode_entry, fingerprint, holds
from tailsrv_formats.index_query import Answer, Query, format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.file import IndexFile
    from indexer.search import Place
    from tailsrv_formats.framing import Framing

POINTS: Final = 2048
"""For so many of the latest wake-ups it is known when which messages arrived, to the message."""


class Arrivals:
    """The latest wake-ups: by when how many messages were there. Finer than the index, and gone with the process."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.offsets: list[int] = []
        self.times: list[int] = []
        self.exact: list[bool] = []

    def add(self, entry: Entry) -> None:
        """Note that the messages before this boundary are there. Neither offset nor time may go back."""
        if len(self.numbers) >= POINTS:
            for column in (self.numbers, self.offsets, self.times, self.exact):
                del column[: POINTS // 2]
        self.numbers.append(entry.number)
        self.offsets.append(entry.offset)
        self.times.append(entry.time)
        self.exact.append(entry.exact)

    def restart(self, entry: Entry) -> None:
        """Forget them all, and begin with this boundary; of what is before it the index knows more."""
        for column in (self.numbers, self.offsets, self.times, self.exact):
            column.clear()
        self.add(entry)

    def last(self) -> Entry:
        """The latest of them."""
        return self.at(-1)

    def at(self, position: int) -> Entry:
        """One of them; the oldest is number 0."""
        return Entry(self.numbers[position], self.offsets[position], self.times[position], self.exact[position])


class _Cell(NamedTuple):
    """What stands between an entry and the next one (or the end), read and checked."""

    left: Entry
    right: Entry
    data: bytes
    start: int
    """Where in `data` the left one's offset is."""


class Lookup:
    """Finds messages in a stream that is known up to the last of `arrivals`."""

    def __init__(
        self, framing: Framing, index: IndexFile, arrivals: Arrivals, seed: int, read: Callable[[int, int], bytes]
    ) -> None:
        """`read`: as many bytes of the stream, from an offset on, as there are up to a number of them."""
        assert index.header is not None  # noqa: S101 - for the type checker: it has begun
        self._framing = framing
        self._index = index
        self._arrivals = arrivals
        self._seed = seed
        self._interval = index.header.interval
        self._read = read

    # --- questions

    def offset_of(self, number: int) -> int:
        """The byte at which message `number` starts. Raises as `answer` does."""
        end = self._arrivals.last()
        if number > end.number:
            raise UnknownError(f"message {number} is beyond the stream, which has {end.number}")
        if number == end.number:
            return end.offset
        return self._find(number)[0]

    def answer(self, query: Query) -> Answer:
        """All there is to say. Raises `UnknownError`, `MismatchError`."""
        end = self._arrivals.last()
        kind, value = query.kind, query.value
        if kind == "count":
            return self._describe(end.number)
        if kind == "last":
            return self._describe(max(0, end.number - value))
        if kind == "time":
            return self._describe(self._number_at_time(value))
        if kind == "offset":
            if value > end.offset:
                raise UnknownError(f"byte {value} is beyond the last whole message, which ends at {end.offset}")
            return self._describe(end.number if value == end.offset else self._number_at_offset(value))
        return self._describe(value)

    def check(self, position: int) -> None:
        """Compare with the stream what the entries at `position` and behind it say; -1 is the stream's beginning."""
        self._cell(self._index.at(max(-1, position)))

    def _describe(self, number: int) -> Answer:
        end = self._arrivals.last()
        if number > end.number:
            raise UnknownError(f"message {number} is beyond the stream, which has {end.number}")
        if number == end.number:
            return Answer(number, end.offset, None, None, end.number, end.offset)
        offset, length, cell = self._find(number)
        arrived = self._arrived(number, cell)
        return Answer(number, offset, length, format_time(arrived.time), end.number, end.offset, arrived.exact)

    # --- in a cell

    def _find(self, number: int) -> tuple[int, int, _Cell]:
        """Where a message that is there starts, how long it is, and in which cell it was found."""
        place = self._index.find_number(number, self._arrivals.numbers[-1])
        cell = self._cell(place)
        left, right, data, start = cell
        if not left.number <= number < right.number:
            raise MismatchError(f"the entries around message {number} are out of order", place.position)
        walk, stop = self._framing.walk, len(data)
        begin, _ = walk(data, start, stop, most=number - left.number)
        offset = left.offset + begin - start
        if number + 1 == right.number:
            return offset, right.offset - offset, cell
        return offset, walk(data, begin, stop, most=1)[0] - begin, cell

    def _number_at_offset(self, offset: int) -> int:
        place = self._index.find_offset(offset, self._arrivals.offsets[-1])
        left, right, data, start = self._cell(place)
        if not left.offset <= offset < right.offset:
            raise MismatchError(f"the entries around byte {offset} are out of order", place.position)
        within = offset - left.offset + start
        boundary, count = self._framing.walk(data, start, len(data), until=within + 1)
        # Where the walk ends at or before the byte, the message that holds it goes on behind what was read.
        return left.number + count - 1 if boundary > within else right.number - 1

    def _cell(self, place: Place) -> _Cell:
        """The cell of an entry. Raises `MismatchError`."""
        position, here, there = place
        end = self._arrivals.last()
        left = decode_entry(here) if here is not None else self._index.entry(-1)
        right = decode_entry(there) if there is not None else end
        size = right.offset - left.offset
        in_order = size >= 0 and left.number <= right.number and left.time <= right.time
        # No two entries are in the same interval: one that is too early in the stream is in another one's place.
        in_place = left.offset >= (position + 1) * self._interval and (
            there is None or right.offset >= (position + 2) * self._interval
        )
        if not in_order or not in_place or right.offset > end.offset or right.number > end.number:
            raise MismatchError(f"the entries from number {position} on are out of order", position)
        dense = self._interval - left.offset % self._interval  # from here on there is no boundary but the right one
        context = min(CONTEXT_BYTES, left.offset)
        wanted = context + min(size, dense + max(self._interval, PREFIX_MAX_BYTES))
        data = self._read(left.offset - context, wanted)
        if len(data) < wanted or (here is not None and not holds(here, fingerprint(data[:context], self._seed))):
            raise MismatchError(f"entry {position} does not fit the bytes before offset {left.offset}", position)
        boundary, count = self._framing.walk(data, context, wanted, context + min(size, dense))
        ending = data[-CONTEXT_BYTES:]
        if boundary < context + size:
            # The last message is longer than what was read; that it ends where it should is checked by itself.
            count += self._last_ends(data, boundary, context + size)
            ending = self._read(max(0, right.offset - CONTEXT_BYTES), min(CONTEXT_BYTES, right.offset))
        if there is not None:
            ends = holds(there, fingerprint(ending, self._seed))
        else:
            ends = ending.endswith(self._framing.terminator) or not right.offset
        if not ends or count != right.number - left.number or boundary > context + size:
            raise MismatchError(
                f"from offset {left.offset} to {right.offset} there are not {right.number - left.number} messages",
                position,
            )
        return _Cell(left, right, data, context)

    def _last_ends(self, data: bytes, boundary: int, end: int) -> int:
        """1 where the message that begins at `boundary`, and is not whole, ends at `end` as far as its prefix tells."""
        try:
            missing = self._framing.missing(data, boundary, len(data))
        except FramingError:
            return 0
        return int(bool(self._framing.terminator) or len(data) + missing == end)

    # --- times

    def _arrived(self, number: int, cell: _Cell) -> Entry:
        """By when message `number` was there, as closely as is known."""
        position = bisect_right(self._arrivals.numbers, number)
        if position or cell.right.number > self._arrivals.numbers[0]:
            return self._arrivals.at(position)
        return cell.right

    def _number_at_time(self, time: int) -> int:
        """The first message that may have arrived at `time` or later."""
        arrivals = self._arrivals
        position = bisect_left(arrivals.times, time)
        if position:
            # All of the ones before were there by the wake-up before.
            return arrivals.numbers[position - 1]
        place = self._index.find_time(time, arrivals.times[0])
        cell = self._cell(place)
        if cell.right.time < time or (place.position >= 0 and cell.left.time >= time):
            raise MismatchError(f"the times around entry {place.position} are out of order", place.position)
        return cell.left.number
