"""The index of one opened stream, as far as the stream has confirmed it: what is indexed, and how it is searched.

`StreamIndex.verify` compares the index file with the stream: an index of another stream is set aside, wrong entries
are repaired, entries that are ahead of the commit mark are kept unused. From then on `read_on` and `add` index what
comes. The object is made whole, and dropped whole when FILE or the index is replaced or cut.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from indexer.arrival_log import ArrivalLog
from indexer.errors import CorruptIndexError
from indexer.identity import head_mismatch, identified, last_match, matches, samples
from indexer.lookup import Lookup
from indexer.repair import last_valid, repair
from indexer.segments import Joiner
from indexer.walker import Walker
from tailsrv_formats.index_file import RAW_FIELDS, Entry, encode_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from indexer.store import IndexStore
    from tailsrv_formats.framing import Framing

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

PIECE_BYTES: Final = 1 << 15
"""Bytes that one read walks: a third of a millisecond if messages have a hundred bytes."""

_UNLIMITED: Final = 1 << 48
"""More messages than an entry can count."""


def read_nothing(_offset: int, _count: int) -> bytes:
    """Read a stream that does not exist: it has no bytes."""
    return b""


def reader(fd: int) -> Read:
    """A function that reads this file."""
    return partial(_read, fd)


def _read(fd: int, offset: int, count: int) -> bytes:
    return os.pread(fd, count, offset)


class StreamIndex:
    """The index of a stream from its beginning to the last message that is indexed."""

    def __init__(self, store: IndexStore, framing: Framing, read: Read, position: int = -1) -> None:
        """Trust the entries up to `position`, none by default."""
        self._store = store
        self._file = store.file
        self._framing = framing
        self._read = read
        self._log = ArrivalLog(self._file.entry(position))
        lookup = Lookup(framing, self._file, self._log, read)
        self._lookup = lookup
        # A look-up costs some microseconds: it is called without a method in between.
        self.offset_of = lookup.offset_of
        self.answer = lookup.answer
        self.forget_blocks = lookup.forget_blocks
        self.rewind()

    # --- verifying

    @classmethod
    def verify(cls, store: IndexStore, framing: Framing, fd: int, end: int) -> StreamIndex:
        """Compare the index with the stream, which is committed up to `end`, and keep what is right of it.

        Raises `OSError` if the stream can't be read; nothing is lost then.
        """
        file, read, size = store.file, reader(fd), os.fstat(fd).st_size
        file.restore()
        if file.count:
            why = head_mismatch(file.header, read)
            last = -1 if why else last_match(file, read, size)
            if last < 0:
                store.set_aside(why or "the stream has other bytes before every entry")
            elif last + 1 < file.count:
                store.cut(last + 1)
        index = cls._resumed(store, framing, read, end)
        for position in samples(file.count):
            if not matches(file, position, read, size):
                error = CorruptIndexError("a sample of its entries does not match the stream", position)
                count = index.repair(error)
                if count is not None:
                    store.cut(count, str(error))
                    index = cls._resumed(store, framing, read, end)
                    break
        if file.count and not file.header.head_bytes:
            store.identify(identified(file.header, read))
        return index

    @classmethod
    def _resumed(cls, store: IndexStore, framing: Framing, read: Read, end: int) -> StreamIndex:
        """Resume after the last entry within the committed stream that the stream confirms."""
        file = store.file
        if file.count and file.entry(file.count - 1).offset > end:
            file.retract(file.find_offset(end, file.entry(file.count - 1).offset).position + 1)
        bounds = ArrivalLog(Entry(_UNLIMITED, end, _UNLIMITED << 15, exact=False))
        position = last_valid(file, Lookup(framing, file, bounds, read), file.count - 1)
        file.retract(position + 1)
        if file.ahead:
            store.report_ahead(end)
        return cls(store, framing, read, position)

    def head_mismatch(self) -> str | None:
        """Why the index belongs to another stream; None if it does not. Raises `OSError`."""
        return head_mismatch(self._file.header, self._read)

    # --- how far it is

    @property
    def count(self) -> int:
        """Messages that are indexed."""
        return self._log.numbers[-1]

    @property
    def end(self) -> int:
        """Where the last of them ends, in bytes."""
        return self._log.offsets[-1]

    @property
    def latest(self) -> int:
        """By when they were there, in nanoseconds since 1970."""
        return self._log.times[-1]

    @property
    def position(self) -> int:
        """Where the next read begins, in bytes."""
        return self._walker.position

    @property
    def framing_error(self) -> str | None:
        """Why the bytes at `end` can't be a message; None if they may be one."""
        return self._walker.framing_error

    def is_behind(self, end: int) -> bool:
        """Whether the stream, which ends at `end`, has something that was not read yet."""
        walker = self._walker
        return end >= walker.wanted and walker.framing_error is None

    # --- adding

    def rewind(self) -> None:
        """Forget what was read of the next message: read again from the end of the last one."""
        header, last = self._file.header, self._log.last()
        self._walker = Walker(self._framing, header.interval, header.seed(), last.offset, last.number)

    def read_on(self, end: int, *, exact: bool) -> bool:
        """Read and index one piece of a stream that ends at `end`. Returns False if the file is shorter.

        `exact`: these messages have just arrived. Raises `OSError`, `RewrittenError`.
        """
        walker = self._walker
        size = min(PIECE_BYTES, end - walker.position)
        data = self._read(walker.position, size)
        raw = walker.feed(data)
        self.add(raw, walker.number, walker.boundary, exact=exact)
        return len(data) == size

    def joiner(self) -> Joiner:
        """What joins results of builder processes to what is indexed."""
        return Joiner(self._framing, self._file.header.interval, self.end, self.count)

    def add(self, raw: Sequence[int], number: int, boundary: int, *, exact: bool) -> None:
        """Add raw entries, and record that the `number` messages before `boundary` are there."""
        log = self._log
        if number == log.numbers[-1]:
            return
        now = max(time.time_ns(), log.times[-1])  # times never go back, even if the clock does
        if raw:
            now = self._add_entries(raw, now, exact=exact)
        log.add(Entry(number, boundary, now, exact))

    def _add_entries(self, raw: Sequence[int], now: int, *, exact: bool) -> int:
        """Write entries, or find them in the file. Returns by when these messages were there."""
        file = self._file
        if file.ahead:
            adopted, last = file.adopt(raw)
            if last is not None:
                # As after a start: the index knows best when messages before this entry arrived.
                self._log.restart(last)
                now = max(now, last.time)
            raw = raw[RAW_FIELDS * adopted :]
            if not raw:
                return now
        if not file.count:
            self._store.identify(identified(file.header, self._read))
        self._store.append(encode_entries(raw, now, exact=exact))
        return now

    # --- repairing

    def repair(self, error: CorruptIndexError) -> int | None:
        """Write the wrong entries again. If that is too much, return how many entries before them are right."""
        file, wrong = self._file, self._wrong(error)
        right = last_valid(file, self._lookup, wrong)
        try:
            repaired = repair(file, self._framing, self._read, right=right, wrong=wrong, end=self._log.last())
        except CorruptIndexError:
            return self.right_before(error)
        self._store.report_repaired(repaired, str(error))
        return None

    def right_before(self, error: CorruptIndexError) -> int:
        """How many entries are right, and in order, before the wrong one."""
        return last_valid(self._file, self._lookup, self._wrong(error), in_order=True) + 1

    def _wrong(self, error: CorruptIndexError) -> int:
        return min(error.position, self._file.count - 1)
