"""Numbers messages, and finds those that get an entry: bytes in, entries out.

A walker knows how many messages are before a boundary, and goes on from there. It wants bytes from `position` on, once
the stream reaches `wanted`. It wants no more than a few bytes twice: the context of the next boundary, which shows at
once if the stream was rewritten, and a length prefix that was not whole. Long payloads after a length prefix are not
read at all.

Knows nothing of files, clocks, or what becomes of the entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tailsrv_formats.framing import VARINT_MAX_BYTES, Framing, FramingError
from tailsrv_formats.index_file import CONTEXT_BYTES, fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX_MAX_BYTES: Final = VARINT_MAX_BYTES
"""No framing needs more bytes to know how long a message is."""


FEW: Final = 48
"""If messages are longer than this on average, counting terminators takes longer than removing them."""


class RewrittenError(Exception):
    """The stream was rewritten: bytes that had been read are different now, or gone."""


class Walker:
    """Walks from a boundary of a stream as bytes come in."""

    def __init__(self, framing: Framing, interval: int, seed: int, boundary: int = 0, number: int = 0) -> None:
        """Start at the byte `boundary`, before which there are `number` messages."""
        self.boundary = boundary
        """Where the last whole message ends, in bytes."""
        self.number = number
        """How many messages there are before `boundary`."""
        self.position = max(0, boundary - CONTEXT_BYTES)
        """Where the bytes begin that `feed` gets next."""
        self.wanted = boundary + 1
        """How many bytes the stream must have before `feed` can find another message."""
        self.framing_error: str | None = None
        """Why the bytes at `boundary` can't be a message; nothing more is read then. None if they may be one."""

        self._framing = framing
        self._interval = interval
        self._seed = seed
        self._due = (boundary // interval + 1) * interval
        self._seen = boundary
        self._context: bytes | None = None

    def feed(self, data: bytes) -> Sequence[int]:
        """Walk over `data`, the stream's bytes from `position` on. Returns raw entries, see `index_file.RAW_FIELDS`.

        Raises `RewrittenError`.
        """
        at = self.position
        seen = self._seen - at
        if len(data) < seen or (self._context is not None and data[:seen] != self._context):
            raise RewrittenError
        start = self.boundary - at
        if seen > start:
            finished = self._finish(data, seen)
            if finished < 0:
                return ()
            start = finished
        entries: list[int] = []
        start = self._walk(data, start, entries)
        self.boundary = at + start
        self._stop(data, start)
        return entries

    def _walk(self, data: bytes, start: int, entries: list[int]) -> int:
        """Step over whole messages from the boundary `start` on. Returns the boundary reached."""
        walk, at, stop, interval, number = self._framing.walk, self.position, len(data), self._interval, self.number
        seed, terminator, longest = self._seed, self._framing.terminator, self._framing.max_message_bytes
        due, few = self._due - at, False
        while True:
            if start >= due:
                context = data[start - CONTEXT_BYTES if start > CONTEXT_BYTES else 0 : start]
                entries += (number, at + start, fingerprint(context, seed))
                due = ((at + start) // interval + 1) * interval - at
            # Most of a build is here: a whole interval of messages with a terminator, none of which can be too long.
            end = data.find(terminator, due - 1) + 1 if terminator else 0
            if 0 < end <= start + longest:
                if few:
                    # Removing them is faster than counting if they are few: it goes from one to the next.
                    count = end - start - len(data[start:end].replace(terminator, b""))
                else:
                    count = data.count(terminator, start, end)
                few = count * FEW < end - start
                start = end
            else:
                start, count = walk(data, start, stop, due)
            number += count
            if start < due:
                self._due = due + at
                self.number = number
                return start

    def _finish(self, data: bytes, seen: int) -> int:
        """Look for the end of the message that began in earlier bytes. Returns where it is, -1 if it has not come."""
        framing, at = self._framing, self.position
        if not framing.terminator:
            end = seen  # it was known, and waited for
        else:
            end = data.find(framing.terminator, seen) + 1
            length = (at + end if end else at + len(data)) - self.boundary
            if length > framing.max_message_bytes or (not end and length == framing.max_message_bytes):
                self.framing_error = (
                    f"a message of {length} bytes or more exceeds the limit of {framing.max_message_bytes} bytes"
                )
                return -1
            if not end:
                self._look_on(data, len(data))
                return -1
        self.number += 1
        self.boundary = at + end
        return end

    def _stop(self, data: bytes, start: int) -> None:
        """Record what has to come before there can be another whole message."""
        stop = len(data)
        if start == stop:
            self._look_on(data, stop)
            return
        try:
            missing = self._framing.missing(data, start, stop)
        except FramingError as error:
            self.framing_error = str(error)
            return
        if self._framing.terminator:
            self._look_on(data, stop)
        elif stop - start >= PREFIX_MAX_BYTES:
            # Its length is known: go on where it ends. What is before it has not been read.
            self._seen = self.wanted = self.position + stop + missing
            self._context = None
            self.position = self._seen - CONTEXT_BYTES if self._seen > CONTEXT_BYTES else 0
        else:
            self._look_on(data, start)
            self.wanted = self._seen + stop - start + missing

    def _look_on(self, data: bytes, seen: int) -> None:
        """Want what comes after ``data[:seen]``."""
        begin = max(0, seen - CONTEXT_BYTES)
        self._context = data[begin:seen]
        self._seen = self.position + seen
        self.wanted = self._seen + 1
        self.position += begin
