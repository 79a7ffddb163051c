"""Compares an index with the whole stream, for `tailsrv-check`. Never writes, and takes no lock.

An index that ends before its stream does is right, and so is one whose last entry is not whole: a killed indexer leaves
both, and its next start goes on from there.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Final

from indexer.options import DEFAULT_MAX_MESSAGE_BYTES, SUFFIX
from indexer.walker import RewrittenError, Walker
from tailsrv_formats.commit_mark import MARK_BYTES
from tailsrv_formats.commit_mark import SUFFIX as MARK_SUFFIX
from tailsrv_formats.commit_mark import decode as decode_mark
from tailsrv_formats.errors import reason
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import (
    ENTRY_BYTES,
    HEADER_BYTES,
    RAW_FIELDS,
    Header,
    decode_entry,
    decode_header,
    holds,
    unpack,
)
from tailsrv_runtime.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 1 << 18
FINDINGS: Final = 20
"""The most findings that are listed."""


def verify(
    stream_path: str,
    index_path: str | None = None,
    *,
    end: int | None = None,
    framing: str | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> list[str]:
    """What is wrong with the index of a stream, a sentence for each finding; empty if there is no index.

    `index_path`: default ``FILE.index``. `end`: how far the stream is committed, in bytes; default: as its commit mark
    says. `framing`: the stream's, if it is known.
    """
    index_path = index_path or stream_path + SUFFIX
    try:
        index = open_regular(index_path, follow=False)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{index_path}: cannot be read: {reason(error)}"]
    try:
        stream = open_regular(stream_path)
    except OSError as error:
        os.close(index)
        return [f"{stream_path}: cannot be read: {reason(error)}"]
    found = []
    try:
        for finding in _verify(
            stream, _end(stream, stream_path) if end is None else end, index, framing, max_message_bytes
        ):
            found.append(f"{index_path}: {finding}")
            if len(found) == FINDINGS:
                found.append(f"{index_path}: further findings are not listed")
                break
    except OSError as error:
        found.append(f"{index_path}: cannot read the index or the stream to its end: {reason(error)}")
    except RewrittenError:
        found.append(f"{index_path}: the stream changed while it was read; check again")
    finally:
        os.close(stream)
        os.close(index)
    return found


def _end(stream: int, path: str) -> int:
    """Where the committed stream ends, in bytes. Raises `OSError`."""
    size = os.fstat(stream).st_size
    try:
        mark = open_regular(path + MARK_SUFFIX)
    except OSError:
        return size  # no commit mark; `tailsrv-check` reports one that can't be read
    try:
        return min(size, decode_mark(os.pread(mark, MARK_BYTES, 0)) or 0)
    finally:
        os.close(mark)


def _verify(stream: int, end: int, index: int, framing: str | None, max_message_bytes: int) -> Iterator[str]:
    size = os.fstat(index).st_size
    if size == 0:
        return
    header = decode_header(os.pread(index, HEADER_BYTES, 0))
    if header is None or header.framing not in FRAMINGS:
        yield "offset 0: not an index, or its header is damaged"
        return
    if framing is not None and header.framing != framing:
        yield f"offset 8: the index was made with {header.framing} framing; the stream has {framing}"
        return
    if header.head_bytes and zlib.crc32(os.pread(stream, header.head_bytes, 0)) != header.head_crc:
        yield "offset 32: the index belongs to another stream, which begins with other bytes"
        return
    yield from _compare(stream, end, index, header, max_message_bytes)


def _compare(stream: int, end: int, index: int, header: Header, max_message_bytes: int) -> Iterator[str]:
    """Compare every entry with the stream."""
    count = (os.fstat(index).st_size - HEADER_BYTES) // ENTRY_BYTES
    walker = Walker(make_framing(header.framing, max_message_bytes), header.interval, header.seed())
    position, time = 0, 0
    while position < count and walker.framing_error is None and walker.wanted <= end:
        data = os.pread(stream, min(PIECE_BYTES, end - walker.position), walker.position)
        if walker.position + len(data) < walker.wanted:
            raise RewrittenError  # the stream has just been cut: the rest would never come
        raw = walker.feed(data)
        for at in range(0, len(raw), RAW_FIELDS):
            if position == count:
                return
            number, offset, fingerprint = raw[at : at + RAW_FIELDS]
            packed = os.pread(index, ENTRY_BYTES, HEADER_BYTES + position * ENTRY_BYTES)
            if len(packed) < ENTRY_BYTES:
                return  # it has just been cut
            words = unpack(packed)
            entry = decode_entry(words)
            where = f"offset {HEADER_BYTES + position * ENTRY_BYTES}: entry {position}"
            if (entry.number, entry.offset) != (number, offset):
                yield (
                    f"{where} says that message {entry.number} starts at {entry.offset}; "
                    f"this entry should say that message {number} starts at {offset}"
                )
            elif not holds(words, fingerprint):
                yield f"{where} is damaged"
            elif entry.time < time:
                yield f"{where} has an earlier time than the one before"
            time = max(time, entry.time)
            position += 1
    if position < count:
        yield (
            f"offset {HEADER_BYTES + position * ENTRY_BYTES}: {count - position} entries are beyond the last whole "
            f"message, which ends at {walker.boundary} of {end} bytes"
        )
