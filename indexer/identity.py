"""Whether an index belongs to a stream: looked at in a few places, in the same time for a stream of any size.

Compared are the stream's first bytes, the bytes before the last entry, and those before some entries between. Bytes
that were read once never change in a stream as this toolkit writes it; this is for files that somebody replaced,
rewrote or cut. What a sample misses, a look-up finds when it gets there: it uses no entry that it has not compared.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from indexer.format import CONTEXT_BYTES, HEAD_BYTES, Header, MismatchError, fingerprint, holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.file import IndexFile

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

SAMPLES: Final = 8
"""Entries that are compared, spread over the index, besides the last one."""

TORN_ENTRIES: Final = 4096
"""So many entries in a row may be damaged (pages of zeros after a power cut); with more, it is not our index."""


def identify(header: Header, read: Read) -> Header:
    """The header with what the stream begins with; it has to be as long as the interval at least."""
    head = read(0, min(HEAD_BYTES, header.interval))
    return msgspec.structs.replace(header, head_bytes=len(head), head_crc=zlib.crc32(head))


def disagreement(index: IndexFile, read: Read, size: int) -> str | None:
    """Why the index can't be that of the stream, whose file has `size` bytes; None when it can.

    From the first entry on that does not fit the stream, entries are cut off: the stream is read again from there.
    Raises `OSError` where the stream or the index can't be read.
    """
    header = index.header
    if header is None or not index.count:
        return None
    head = read(0, header.head_bytes)
    if header.head_bytes == 0 or len(head) < header.head_bytes or zlib.crc32(head) != header.head_crc:
        return "the stream begins with other bytes"
    try:
        if index.entry(index.count - 1).offset > size:
            index.cut(index.find_offset(size) + 1)
        if index.count and not cut_before(index, index.count, read, size):
            return "the stream has other bytes before the last entry, or ends before it"
        _cut_at_samples(index, read, size)
    except MismatchError as error:
        return str(error)
    return None


def cut_before(index: IndexFile, position: int, read: Read, size: int) -> bool:
    """Cut off the entries from `position` on, and before it those that don't fit the stream.

    False where there are too many of those; nothing is cut then.
    """
    seed = index.header.seed() if index.header is not None else 0
    for count in range(position, max(0, position - TORN_ENTRIES), -1):
        if fits(index, count - 1, seed, read, size):
            if count < index.count:
                index.cut(count)
            return True
    if position <= TORN_ENTRIES:
        index.cut(0)
        return True
    return False


def _cut_at_samples(index: IndexFile, read: Read, size: int) -> None:
    seed = index.header.seed() if index.header is not None else 0
    count, last = index.count, (0, 0, 0)
    for position in sorted({count * sample // SAMPLES for sample in range(SAMPLES)} | {count - 1} if count else ()):
        entry = index.entry(position)
        here = (entry.number, entry.offset, entry.time)
        in_order = all(then <= now for now, then in zip(here, last, strict=True))
        if not in_order or not fits(index, position, seed, read, size):
            if not cut_before(index, position, read, size):
                raise MismatchError(f"the stream has other bytes before entry {position}")
            return
        last = here


def fits(index: IndexFile, position: int, seed: int, read: Read, size: int) -> bool:
    """Whether an entry was made for the bytes that the stream has before its offset."""
    words = index.words(position)
    offset = words[1]
    if offset > size:
        return False
    context = min(CONTEXT_BYTES, offset)
    return holds(words, fingerprint(read(offset - context, context), seed))
