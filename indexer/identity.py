"""Whether an index belongs to a stream: looked at in a few places, in the same time for a stream of any size.

Compared are the stream's first bytes, the bytes before the last entry, and those before some entries between. Bytes
that were read once never change in a stream as this toolkit writes it; this is for files that somebody replaced,
rewrote or cut. What a sample misses, a look-up finds when it gets there: it uses no entry that it has not compared.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from indexer.format import CONTEXT_BYTES, HEAD_BYTES, Header, fingerprint, holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.file import IndexFile

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

SAMPLES: Final = 8
"""Entries that are compared, spread over the index, besides the last one."""

TORN_ENTRIES: Final = 4096
"""So many entries at the end may be damaged (pages of zeros after a power cut); with more, it is not our index."""


def identify(header: Header, read: Read) -> Header:
    """The header with what the stream begins with; it has to be as long as the interval at least."""
    head = read(0, min(HEAD_BYTES, header.interval))
    return msgspec.structs.replace(header, head_bytes=len(head), head_crc=zlib.crc32(head))


def disagreement(index: IndexFile, read: Read, end: int) -> str | None:
    """Why the index can't be that of the stream, which has `end` bytes; None when it can.

    Damaged entries at its end are cut off.
    """
    header = index.header
    if header is None or not index.count:
        return None
    head = read(0, header.head_bytes)
    if header.head_bytes == 0 or len(head) < header.head_bytes or zlib.crc32(head) != header.head_crc:
        return "the stream begins with other bytes"
    seed, count = header.seed(), index.count
    while not _fits(index, count - 1, seed, read, end):
        count -= 1
        if count == 0 or index.count - count > TORN_ENTRIES:
            return "the stream has other bytes before the last entry, or ends before it"
    last = (0, 0, 0)
    for position in sorted({count * sample // SAMPLES for sample in range(SAMPLES)} | {count - 1}):
        entry = index.entry(position)
        here = (entry.number, entry.offset, entry.time)
        if not _fits(index, position, seed, read, end) or any(now < then for now, then in zip(here, last, strict=True)):
            return f"the stream has other bytes before entry {position}"
        last = here
    if count < index.count:
        index.cut(count)
    return None


def _fits(index: IndexFile, position: int, seed: int, read: Read, end: int) -> bool:
    words = index.words(position)
    offset = words[1]
    if offset > end:
        return False
    context = min(CONTEXT_BYTES, offset)
    return holds(words, fingerprint(read(offset - context, context), seed))
