"""Whether an index belongs to a stream: compared in a few places, in the same time for a stream of any size.

Compared are the stream's first bytes, the bytes before the last entry, and those before some entries in between. Bytes
that were committed never change in a stream that this toolkit writes; this is for files that somebody replaced, rewrote
or cut. A look-up finds what these samples miss: it uses no entry that it has not compared.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from indexer.errors import CorruptIndexError, IndexFileError
from tailsrv_formats.index_file import CONTEXT_BYTES, HEAD_BYTES, Header, fingerprint, holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.file import IndexFile

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

SAMPLES: Final = 8
"""Entries that are compared in addition to the last one, spread over the index."""


def identified(header: Header, read: Read) -> Header:
    """The header with the checksum of the stream's first bytes. The stream has at least an interval of bytes."""
    head = read(0, min(HEAD_BYTES, header.interval))
    return msgspec.structs.replace(header, head_bytes=len(head), head_crc=zlib.crc32(head))


def head_mismatch(header: Header, read: Read) -> str | None:
    """Why an index with entries belongs to another stream; None if nothing says so. Raises `OSError`.

    A header without the checksum of the stream's first bytes, which a power cut may leave, matches every stream.
    """
    head = read(0, header.head_bytes)
    if len(head) < header.head_bytes or (head and zlib.crc32(head) != header.head_crc):
        return "the stream begins with other bytes"
    return None


def last_match(index: IndexFile, read: Read, size: int) -> int:
    """The last entry that matches the stream, which is `size` bytes long; -1 if none does.

    The search goes back in steps that double, and then bisects the last step: pages of zeros at the end, or a stream
    that is shorter than it was, cost some dozen comparisons.
    """
    low, high, step = index.count - 1, index.count, 1
    while low >= 0 and not matches(index, low, read, size):
        low, high, step = max(-1, low - step), low, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        if matches(index, middle, read, size):
            low = middle
        else:
            high = middle
    return low


def samples(count: int) -> list[int]:
    """The positions of the entries to compare."""
    return sorted({count * sample // SAMPLES for sample in range(SAMPLES)}) if count else []


def matches(index: IndexFile, position: int, read: Read, size: int) -> bool:
    """Whether the entry at `position` was made for a place of the stream that has these bytes before it."""
    try:
        (words,) = index.words(position)
    except (CorruptIndexError, IndexFileError):
        return False
    offset = words[1]
    if offset > size:
        return False
    context = min(CONTEXT_BYTES, offset)
    return holds(words, fingerprint(read(offset - context, context), index.header.seed()))
