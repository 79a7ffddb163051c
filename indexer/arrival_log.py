"""The arrival log: how many messages were there at each of the latest wake-ups, and when that was.

It is finer than the index, whose times are exact to an interval, and it is lost with the process.
"""

from __future__ import annotations

from typing import Final

from tailsrv_formats.index_file import Entry

CAPACITY: Final = 2048
"""Wake-ups that are kept: for the messages of these, arrival times are exact to the message."""


class ArrivalLog:
    """A table of boundaries in the order of the stream; the last row is how far the stream is indexed.

    The columns are public: a look-up reads single values of them, and a row costs an object.
    """

    __slots__ = ("exact", "numbers", "offsets", "times")

    def __init__(self, first: Entry) -> None:
        """Begin with this boundary."""
        self.numbers = [first.number]
        self.offsets = [first.offset]
        self.times = [first.time]
        self.exact = [first.exact]

    def add(self, entry: Entry) -> None:
        """Record that the messages before this boundary are there. Number, offset and time never decrease."""
        if len(self.numbers) >= CAPACITY:
            for column in (self.numbers, self.offsets, self.times, self.exact):
                del column[: CAPACITY // 2]
        self.numbers.append(entry.number)
        self.offsets.append(entry.offset)
        self.times.append(entry.time)
        self.exact.append(entry.exact)

    def restart(self, entry: Entry) -> None:
        """Drop all rows and begin with this boundary; the index knows more about what is before it."""
        for column in (self.numbers, self.offsets, self.times, self.exact):
            column.clear()
        self.add(entry)

    def last(self) -> Entry:
        """The latest row."""
        return self.at(-1)

    def at(self, row: int) -> Entry:
        """One row; the oldest is row 0."""
        return Entry(self.numbers[row], self.offsets[row], self.times[row], self.exact[row])
