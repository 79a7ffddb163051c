"""Repairs wrong entries of an index from the stream.

Which entries there are, and at which positions, depends on the stream alone. So the entries around a wrong one are made
again from the last right one before it up to a right one after it, and written in their places. What follows stays as
it is, with its times, which the stream does not hold. A repaired entry gets the time of the right one after it: its
messages had arrived by then, too.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from indexer.errors import CorruptIndexError, IndexFileError
from indexer.walker import RewrittenError, Walker
from tailsrv_formats.index_file import RAW_FIELDS, Words, decode_entry, encode_entries, holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.file import IndexFile
    from indexer.lookup import Lookup
    from tailsrv_formats.framing import Framing
    from tailsrv_formats.index_file import Entry

PIECE_BYTES: Final = 1 << 17

RUN_ENTRIES: Final = 4096
"""The longest run of entries in a wrong place that is always found: 96 KiB."""

REPAIR_BYTES: Final = 1 << 20
"""Bytes of the stream that a repair may walk however long it takes,"""
REPAIR_SECONDS: Final = 0.05
"""and for how long it may walk more: the loop does nothing else meanwhile."""


def last_valid(index: IndexFile, lookup: Lookup, position: int, *, in_order: bool = False) -> int:
    """The position of an entry at or before `position` that the stream confirms; -1: the stream's beginning.

    The search goes back in steps that double. `in_order`: the entries before it are in order, too. Raises `OSError` if
    the stream can't be read.
    """
    step = 1
    while position >= 0:
        try:
            lookup.check(position - 1)
            ordered = _in_order(index, position) if in_order else position
            if ordered == position:
                return position
            position = ordered
        except (CorruptIndexError, IndexFileError):
            position -= step
            step *= 2
    return -1


def _in_order(index: IndexFile, position: int) -> int:
    """The last entry up to `position` that is in the order of the entries before it.

    A disk or a program may have written a run of right entries in a wrong place. As many entries as such a run is long
    are compared, and some that are further away.
    """
    begin = max(0, position - RUN_ENTRIES)
    offsets = [words[1] for words in index.words(begin, position - begin + 1)]
    for at, (earlier, later) in enumerate(pairwise(offsets)):
        if later <= earlier:
            return begin + at
    back = RUN_ENTRIES
    while back <= position:
        if index.entry(position - back).offset >= offsets[0]:
            return position - back
        back *= 2
    return position


class _Fixes:
    """Entries to be written, collected until a right entry after them is known."""

    def __init__(self, index: IndexFile) -> None:
        self._index = index
        self._raw: list[tuple[int, int, int, int]] = []  # position, number, offset, fingerprint: no time yet
        self._ready: list[tuple[int, bytes]] = []

    def add(self, position: int, number: int, offset: int, fingerprint: int) -> None:
        self._raw.append((position, number, offset, fingerprint))

    def date(self, when: int) -> None:
        """The next right entry has this time."""
        for position, *raw in self._raw:
            self._ready.append((position, encode_entries(raw, when, exact=False)))
        self._raw.clear()

    def write(self) -> int:
        for position, packed in self._ready:
            self._index.overwrite(position, packed)
        return len(self._ready)


def repair(
    index: IndexFile, framing: Framing, read: Callable[[int, int], bytes], *, right: int, wrong: int, end: Entry
) -> int:
    """Write the wrong entries between the right one at `right` and one after `wrong` again. Returns how many.

    `end` is how far the stream is indexed. Raises `CorruptIndexError` if that does not help: too much is wrong, or the
    numbers contradict each other; nothing has been written then. Raises `OSError`.
    """
    start = index.entry(right)
    walker = Walker(framing, index.header.interval, index.header.seed(), start.offset, start.number)
    fixes, position, latest = _Fixes(index), right + 1, start.time
    deadline = time.monotonic() + REPAIR_SECONDS
    while walker.wanted <= end.offset and walker.framing_error is None:
        if walker.boundary - start.offset > REPAIR_BYTES and time.monotonic() > deadline:
            raise CorruptIndexError("too much of the index is wrong", right)
        wanted = min(PIECE_BYTES, end.offset - walker.position)
        data = read(walker.position, wanted)
        if len(data) < wanted:
            raise CorruptIndexError("the stream is being cut", right)
        try:
            raw = walker.feed(data)
        except RewrittenError:
            raise CorruptIndexError("the stream is being rewritten", right) from None
        for at in range(0, len(raw), RAW_FIELDS):
            if position >= index.count:
                raise CorruptIndexError("entries are missing", right)
            number, offset, fingerprint = raw[at : at + RAW_FIELDS]
            words = _stored(index, position)
            entry = None if words is None else decode_entry(words)
            if (
                words is not None
                and entry is not None
                and (entry.number, entry.offset) == (number, offset)
                and holds(words, fingerprint)
                and latest <= entry.time <= end.time
            ):
                latest = entry.time
                fixes.date(latest)
                if position > wrong:
                    return fixes.write()
            else:
                fixes.add(position, number, offset, fingerprint)
            position += 1
    if position != index.count or (walker.number, walker.boundary) != (end.number, end.offset):
        raise CorruptIndexError("the stream has other messages than were counted", right)
    fixes.date(end.time)
    return fixes.write()


def _stored(index: IndexFile, position: int) -> Words | None:
    try:
        return index.words(position)[0]
    except (CorruptIndexError, IndexFileError):
        return None
