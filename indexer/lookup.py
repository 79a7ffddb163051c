"""Answers to queries: a search in the index, one verified block of the stream, and a walk within the block.

Knows no sockets, and of files only the index and a function that reads the stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from indexer.blocks import BlockReader
from indexer.errors import CorruptIndexError, NotFoundError
from tailsrv_formats.index_query import Answer, Query, format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.arrival_log import ArrivalLog
    from indexer.blocks import Block
    from indexer.file import IndexFile
    from tailsrv_formats.framing import Framing
    from tailsrv_formats.index_file import Entry


class Lookup:
    """Finds messages in a stream that is indexed up to the last row of `log`."""

    def __init__(self, framing: Framing, index: IndexFile, log: ArrivalLog, read: Callable[[int, int], bytes]) -> None:
        """``read(offset, count)`` returns as many of the stream's bytes, from an offset on, as there are."""
        self._walk = framing.walk
        self._index = index
        self._log = log
        self._blocks = BlockReader(framing, index.header, log, read)

    def forget_blocks(self) -> None:
        """The stream's file has changed: answer from what it holds now."""
        self._blocks.forget()

    # --- questions

    def offset_of(self, number: int) -> int:
        """The byte at which message `number` starts. Raises as `answer` does."""
        end = self._log.numbers[-1]
        if number >= end:
            return self._offset_of_end(number, end)
        block = self._block_with(number, end)
        skipped = number - block.number
        if not skipped:
            return block.offset
        return block.offset - block.start + self._walk(block.data, block.start, len(block.data), most=skipped)[0]

    def answer(self, query: Query) -> Answer:
        """Everything about a message. Raises `NotFoundError`, `CorruptIndexError`, `OSError`."""
        end = self._log.last()
        kind, value = query.kind, query.value
        if kind == "count":
            return self._describe(end.number, end)
        if kind == "last":
            return self._describe(max(0, end.number - value), end)
        if kind == "time":
            return self._describe(self._number_at_time(value), end)
        if kind == "offset":
            if value > end.offset:
                raise NotFoundError(f"byte {value} is beyond the last whole message, which ends at byte {end.offset}")
            return self._describe(end.number if value == end.offset else self._number_at_offset(value), end)
        return self._describe(value, end)

    def check(self, position: int) -> None:
        """Compare the entries at `position` and after it with the stream; -1 is the beginning of the stream.

        Raises as `answer` does, but for `NotFoundError`.
        """
        self._blocks.block(self._index.at(max(-1, position)))

    def _describe(self, number: int, end: Entry) -> Answer:
        if number >= end.number:
            offset = self._offset_of_end(number, end.number)
            return Answer(number, offset, None, None, end.number, offset)
        block = self._block_with(number, end.number)
        data, start = block.data, block.start
        begin, _ = self._walk(data, start, len(data), most=number - block.number)
        offset = block.offset + begin - start
        # The last message of a block may be longer than what was read of it.
        is_last = number + 1 == block.next_number
        length = block.next_offset - offset if is_last else self._walk(data, begin, len(data), most=1)[0] - begin
        arrived = self._arrived(number, block)
        return Answer(number, offset, length, format_time(arrived.time), end.number, end.offset, arrived.exact)

    def _offset_of_end(self, number: int, end: int) -> int:
        if number > end:
            raise NotFoundError(f"message {number} is beyond the stream, which has {end} messages")
        return self._log.offsets[-1]

    # --- blocks

    def _block_with(self, number: int, end: int) -> Block:
        """The block that holds message `number`, one of `end`."""
        bracket = self._index.find_number(number, end)
        block = self._blocks.block(bracket)
        if not block.number <= number < block.next_number:
            raise CorruptIndexError(f"the entries around message {number} are out of order", bracket.position)
        return block

    def _number_at_offset(self, offset: int) -> int:
        bracket = self._index.find_offset(offset, self._log.offsets[-1])
        block = self._blocks.block(bracket)
        if not block.offset <= offset < block.next_offset:
            raise CorruptIndexError(f"the entries around byte {offset} are out of order", bracket.position)
        within = offset - block.offset + block.start
        boundary, count = self._walk(block.data, block.start, len(block.data), until=within + 1)
        # If the walk ends at or before the byte, the message that holds the byte ends after what was read.
        return block.number + count - 1 if boundary > within else block.next_number - 1

    # --- times

    def _arrived(self, number: int, block: Block) -> Entry:
        """By when message `number` was there, as closely as is known."""
        log = self._log
        row = bisect_right(log.numbers, number)
        if row or block.next_number > log.numbers[0]:
            return log.at(row)
        return self._blocks.end_of(block)

    def _number_at_time(self, time: int) -> int:
        """The first message that may have arrived at `time` or later."""
        log = self._log
        row = bisect_left(log.times, time)
        if row:
            # All messages before it were there at the wake-up before.
            return log.numbers[row - 1]
        bracket = self._index.find_time(time, log.times[0])
        block = self._blocks.block(bracket)
        if self._blocks.end_of(block).time < time or (bracket.position >= 0 and block.time >= time):
            raise CorruptIndexError(f"the times around entry {bracket.position} are out of order", bracket.position)
        return block.number
