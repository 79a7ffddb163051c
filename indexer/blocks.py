"""Blocks: the bytes of the stream between two entries of the index, read and verified against both.

A block is used only if the stream confirms it: the fingerprints of both entries are those of the bytes before their
offsets, and between them are as many messages as the entries say. So a damaged index, or a stream that was rewritten,
raises `CorruptIndexError` instead of giving a wrong answer. An entry's numbers are compared with how far the stream is
indexed before they reach a read, a slice or a sum.

All boundaries that an entry is responsible for lie within one interval after it, because the first boundary of the
next interval has an entry of its own. So a read is bounded by two intervals, however long the messages are.

**Cache.** The last `SLOTS` verified blocks are kept, so that a batch of requests for one block reads and verifies it
once. A block is used again only if its two entries still have the same words: the entries are read for each look-up, so
an entry that changes is always noticed. The owner calls `forget` whenever the stream's file changes. The block after
the last entry grows with the stream and is never kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from indexer.errors import CorruptIndexError
from indexer.walker import PREFIX_MAX_BYTES
from tailsrv_formats.framing import FramingError
from tailsrv_formats.index_file import CONTEXT_BYTES, NUMBER_SHIFT, TIME_MASK, Entry, decode_entry, fingerprint, holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.arrival_log import ArrivalLog
    from indexer.search import Bracket
    from tailsrv_formats.framing import Framing
    from tailsrv_formats.index_file import Header, Words

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

SLOTS: Final = 16
"""Blocks that are kept, each in the slot that its position names: little enough to stay in the processor's cache. With
a megabyte of blocks, look-ups at random took half as long again: each read filled memory that had gone cold."""

KEPT_BYTES: Final = 1 << 16
"""The largest block that is kept: with --interval-bytes up to 32 KiB, all are."""


class Block(NamedTuple):
    """The messages from one entry to the next one, or to the end of what is indexed."""

    number: int
    """Of the block's first message."""
    offset: int
    """Where the first message starts in the stream."""
    time: int
    """When the messages before the block were there, in nanoseconds since 1970."""
    next_number: int
    """Of the message after the block."""
    next_offset: int
    """Where the message after the block starts in the stream."""
    data: bytes
    """Bytes of the stream: some context, then the block, without most of a last message that is long."""
    start: int
    """Where the block starts in `data`."""
    here: Words | None
    """The entry at the block's beginning, as it is stored; None at the beginning of the stream."""
    there: Words | None
    """The entry at the block's end; None at the end of what is indexed."""


class BlockReader:
    """Reads blocks of a stream that is indexed up to the last row of `log`."""

    def __init__(self, framing: Framing, header: Header, log: ArrivalLog, read: Read) -> None:
        """`header` is the index's."""
        self._framing = framing
        self._walk = framing.walk
        self._created = header.created
        self._interval = header.interval
        self._reach = max(header.interval, PREFIX_MAX_BYTES)
        self._seed = header.seed()
        self._log = log
        self._read = read
        self._slots: list[Block | None] = [None] * SLOTS
        self._has_kept = False

    def forget(self) -> None:
        """Read and verify everything again from now on."""
        if self._has_kept:
            self._has_kept = False
            self._slots = [None] * SLOTS

    def end_of(self, block: Block) -> Entry:
        """The entry at the block's end, or how far the stream is indexed."""
        return decode_entry(block.there) if block.there is not None else self._log.last()

    def block(self, bracket: Bracket) -> Block:
        """The block between these two entries. Raises `CorruptIndexError`, `OSError`."""
        position, here, there = bracket
        slot = position % SLOTS
        block = self._slots[slot]
        if block is None or block.here != here or block.there != there:
            block = self._verified(position, here, there)
            if there is not None and len(block.data) <= KEPT_BYTES:
                self._slots[slot] = block
                self._has_kept = True
        return block

    def _verified(self, position: int, here: Words | None, there: Words | None) -> Block:
        # Not decoded into entries: this is most of what a look-up costs, and two objects are a tenth of it.
        log, interval = self._log, self._interval
        known, limit = log.numbers[-1], log.offsets[-1]
        if here is None:
            number, offset, time = 0, 0, self._created
        else:
            number, offset, time = here[0] >> NUMBER_SHIFT, here[1], here[2] & TIME_MASK
        if there is None:
            next_number, next_offset, next_time, lowest = known, limit, log.times[-1], 0
        else:
            next_number, next_offset, next_time = there[0] >> NUMBER_SHIFT, there[1], there[2] & TIME_MASK
            # No two entries are in the same interval: one that is too early in the stream is in another one's place.
            lowest = (position + 2) * interval
        in_order = offset <= next_offset <= limit and number <= next_number <= known and time <= next_time
        if not in_order or offset < (position + 1) * interval or next_offset < lowest:
            raise CorruptIndexError(f"the entries from position {position} on are out of order", position)
        size = next_offset - offset
        dense = interval - offset % interval  # from here on there is no boundary but the right one
        context = min(offset, CONTEXT_BYTES)
        most = dense + self._reach
        wanted = context + (min(most, size))
        data = self._read(offset - context, wanted)
        if len(data) < wanted or (here is not None and not holds(here, fingerprint(data[:context], self._seed))):
            raise CorruptIndexError(f"entry {position} does not match the bytes before offset {offset}", position)
        boundary, count = self._walk(data, context, wanted, context + (min(dense, size)))
        ending = data[-CONTEXT_BYTES:]
        if boundary < context + size:
            # The last message is longer than what was read; that it ends where it should is checked by itself.
            count += self._last_ends(data, boundary, context + size)
            ending = self._read(max(0, next_offset - CONTEXT_BYTES), min(CONTEXT_BYTES, next_offset))
        if there is not None:
            ends = holds(there, fingerprint(ending, self._seed))
        else:
            ends = ending.endswith(self._framing.terminator) or not next_offset
        if not ends or count != next_number - number or boundary > context + size:
            raise CorruptIndexError(
                f"the stream does not have {next_number - number} messages from offset {offset} to {next_offset}",
                position,
            )
        return Block(number, offset, time, next_number, next_offset, data, context, here, there)

    def _last_ends(self, data: bytes, boundary: int, end: int) -> int:
        """1 if the message that begins at `boundary`, and is not whole, ends at `end` as far as its prefix tells."""
        try:
            missing = self._framing.missing(data, boundary, len(data))
        except FramingError:
            return 0
        return int(bool(self._framing.terminator) or len(data) + missing == end)
