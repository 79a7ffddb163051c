"""Walks a long part of the stream in segments, several at a time, and joins the results.

With a terminator, a segment can be walked without knowing what is before it: from the first terminator in it on. The
numbers of its messages are known when the results are joined, in order. With length prefixes there is only one way:
one segment after the other, by one walker.

Pure: a function reads the stream, and the results are plain numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from indexer.walker import Walker
from tailsrv_formats.index_file import CONTEXT_BYTES, RAW_FIELDS, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tailsrv_formats.framing import Framing

    Read = Callable[[int, int], bytes]
    """``read(offset, count)``: as many of the stream's bytes as there are."""

PIECE_BYTES: Final = 1 << 18
"""Read at once: what is walked is still in the processor's cache."""

PROBE_BYTES: Final = 4096


class SegmentResult(NamedTuple):
    """What is in one segment. Messages are numbered from `first`."""

    first: int
    """The first boundary in it; -1 if there is none, because one message spans it."""
    fingerprint: int
    """The fingerprint of `first`."""
    boundary: int
    """The last boundary in it; its end if there is none."""
    messages: int
    """Messages from `first` to `boundary`."""
    is_corrupt: bool
    """Whether the bytes at `boundary` can't be a message."""
    entries: Sequence[int]
    """Raw entries after `first`."""


def walk_terminated(
    read: Read, framing: Framing, interval: int, seed: int, segments: Iterator[tuple[int, int]]
) -> Iterator[SegmentResult]:
    """Walk each of the segments (begin and end, both in bytes) by itself."""
    for begin, end in segments:
        first = _first_boundary(read, framing.terminator, begin, end)
        if first < 0:
            yield SegmentResult(-1, 0, end, 0, False, ())
            continue
        context = read(max(0, first - CONTEXT_BYTES), min(first, CONTEXT_BYTES))
        walker = Walker(framing, interval, seed, first)
        entries: list[int] = []
        while walker.framing_error is None and walker.wanted <= end:
            entries += _feed(walker, read, end)
        yield SegmentResult(
            first,
            fingerprint(context, seed),
            walker.boundary,
            walker.number,
            walker.framing_error is not None,
            entries,
        )


def walk_prefixed(
    read: Read, framing: Framing, interval: int, seed: int, segments: Iterator[tuple[int, int]]
) -> Iterator[SegmentResult]:
    """Walk the segments one after the other; the first begins at a boundary."""
    walker: Walker | None = None
    for begin, end in segments:
        walker = walker or Walker(framing, interval, seed, begin)
        first, walker.number = walker.boundary, 0
        entries: list[int] = []
        while walker.framing_error is None and walker.wanted <= end:
            entries += _feed(walker, read, end)
        yield SegmentResult(first, 0, walker.boundary, walker.number, walker.framing_error is not None, entries)


def _feed(walker: Walker, read: Read, end: int) -> Sequence[int]:
    data = read(walker.position, min(PIECE_BYTES, end - walker.position))
    if not data:
        raise EOFError("the stream became shorter")
    return walker.feed(data)


def _first_boundary(read: Read, terminator: bytes, begin: int, end: int) -> int:
    at, size = begin, PROBE_BYTES
    while at < end:
        data = read(at, min(size, end - at))
        if not data:
            raise EOFError("the stream became shorter")
        found = data.find(terminator)
        if found >= 0:
            return at + found + 1
        at += len(data)
        size = PIECE_BYTES
    return -1


class Joiner:
    """Joins the results, segment by segment, to what is indexed already."""

    def __init__(self, framing: Framing, interval: int, boundary: int, number: int) -> None:
        """Start at the byte `boundary`, before which there are `number` messages: the first segment begins there."""
        self.boundary = boundary
        self.number = number
        self._interval = interval
        self._longest = framing.max_message_bytes
        self._terminated = bool(framing.terminator)
        self._interval_number = boundary // interval

    def join(self, result: SegmentResult) -> list[int] | None:
        """Raw entries with their numbers. None if a message in this segment or before it is too long.

        Even then `boundary` and `number` are right: they are those of the last valid message.
        """
        if (result.boundary if result.first < 0 else result.first) - self.boundary > self._longest and self._terminated:
            return None
        if result.first < 0:
            return []
        raw: list[int] = []
        if self._terminated:
            # One message more: it began in an earlier segment, or right at the beginning of this one.
            self.number += 1
            if result.first // self._interval > self._interval_number:
                raw += (self.number, result.first, result.fingerprint)
        inner = list(result.entries)
        inner[0::RAW_FIELDS] = [number + self.number for number in inner[0::RAW_FIELDS]]
        raw += inner
        self.boundary = result.boundary
        self.number += result.messages
        self._interval_number = self.boundary // self._interval
        return raw
