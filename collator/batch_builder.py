"""Batches: the bytes of many producers become contiguous runs of whole messages.

Bytes are received at the place from which they are written to FILE. A batch is one chunk of memory, or a few. The bytes
of each producer are received after the last whole message of the one before; its incomplete last message (the partial)
is copied out, and the next producer's bytes overwrite it. So a batch is one contiguous slice, and a message costs a
share of one recv and one writev.

A partial that grows beyond `SMALL_BYTES` (an oversized message) is kept in its own memory. Only its new bytes are
searched, and it becomes a piece of the batch when it is whole: a large message in small parts is copied once.

This module knows no sockets, files or clocks. The memory of uncommitted bytes never exceeds the budget. Empty chunks
are kept in addition: `SPARE_CHUNKS`, and those of the last batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collator.acks import Contributor
    from tailsrv_formats.framing import Framing

CHUNK_BYTES: Final = 1 << 20
"""The size of a chunk: it should stay in the processor's cache between recv and writev."""

READ_QUANTUM_BYTES: Final = 1 << 18
"""The read quantum: the most that is read from one producer before the others."""

SMALL_BYTES: Final = 1 << 14
"""Up to this size, copying a partial back costs less than keeping it as an oversized message."""

BATCH_CHUNKS: Final = 16
"""The most chunks of a batch, which grows while the batch before it is being synced."""

SPARE_CHUNKS: Final = 2
"""Empty chunks kept in addition to those of the last batch: allocating one costs more than copying its bytes."""

Piece = bytes | bytearray | memoryview


class NoMemoryError(Exception):
    """There is no memory for a producer's incomplete message, which must be dropped."""


class Inbox:
    """The incomplete message of one producer."""

    __slots__ = ("missing", "noted", "oversized", "partial")

    def __init__(self) -> None:
        self.partial: bytes | bytearray = b""
        """Its bytes so far; a bytearray for an oversized message."""
        self.oversized = False
        self.missing = 0
        """The least number of bytes that an oversized message still needs."""
        self.noted = 0
        """The length of `partial` at its last noted progress (partials.py); 0 while it is empty."""


class Batch:
    """Whole messages that are committed together."""

    __slots__ = ("chunks", "messages", "oversized_bytes", "pieces", "reads", "runs", "size", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """The offset in FILE of its first byte."""
        self.size = 0
        """Its length in bytes."""
        self.messages = 0
        self.reads = 0
        """The number of reads that have added messages to it."""
        self.pieces: list[Piece] = []
        """Its bytes in order; complete after `BatchBuilder.take`."""
        self.chunks: list[_Chunk] = []
        self.oversized_bytes = 0
        """Bytes of its pieces that are not in chunks."""
        self.runs: dict[Contributor, list[int]] = {}
        """The producers to acknowledge, each with the places of its bytes; see `note_run`."""

    @property
    def end(self) -> int:
        """The offset in FILE after its last byte."""
        return self.start + self.size


class _Chunk:
    __slots__ = ("data", "segment", "used", "view")

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.used = 0
        self.segment = 0  # the first byte that is not yet in a piece of the batch


class BatchBuilder:
    """Builds one batch at a time.

    To read from a producer: ``space(inbox)``, receive into it, ``received(inbox, count)``, with no other call between.
    """

    def __init__(
        self,
        framing: Framing,
        buffer_bytes: int,
        *,
        start: int = 0,
        batch_chunks: int = BATCH_CHUNKS,
        count: bool = True,
    ) -> None:
        """`buffer_bytes`: the memory budget. `start`: the offset in FILE of the first batch. `batch_chunks`: see above.

        `count`: whether messages are counted even if the framing finds boundaries without visiting each message.
        """
        self._framing = framing
        self._budget = buffer_bytes
        self._count = count or not framing.terminator
        self._chunk_bytes = min(CHUNK_BYTES, buffer_bytes // 4)
        self._quantum_bytes = min(READ_QUANTUM_BYTES, self._chunk_bytes // 2)
        self._least_bytes = self._quantum_bytes // 4
        self._small_bytes = min(SMALL_BYTES, self._quantum_bytes // 4)
        self._batch_chunks = batch_chunks
        self._no_chunk = _Chunk(0)
        self._no_chunk.used = self._no_chunk.segment = self._chunk_bytes  # it counts as full
        self._chunk = self._no_chunk
        self._spare: list[_Chunk] = []
        self._at = 0  # the place in the chunk of the bytes to be received
        self.batch = Batch(start)
        self.held = 0
        """Bytes of memory in use for uncommitted bytes."""

    # --- reading from one producer

    def space(self, inbox: Inbox) -> memoryview | None:
        """The memory for this producer's next bytes; None if there is no room before a commit.

        Raises `MemoryError`, and then nothing has changed: see `reserve`.
        """
        if self.held + self._quantum_bytes > self._budget:
            return None
        chunk = self._chunk
        front = 0 if inbox.oversized else len(inbox.partial)
        if self._chunk_bytes - chunk.used - front < self._least_bytes:
            if not self._begin_chunk():
                return None
            chunk = self._chunk
        used = chunk.used
        self._at = at = used + front
        if front:
            chunk.data[used:at] = inbox.partial
        return chunk.view[at : at + self._quantum_bytes]

    def received(self, inbox: Inbox, count: int) -> int:
        """Add the `count` bytes received into the space. Returns the length of the messages that they complete.

        Raises `FramingError` if the bytes after these messages are no message, and `NoMemoryError` if there is no
        memory for them; in both cases the complete messages are in the batch.
        """
        chunk, batch = self._chunk, self.batch
        start, stop, before = chunk.used, self._at + count, batch.size
        if inbox.oversized:
            end = self._complete(inbox, start, stop)
            if end is None:
                return 0
            batch.size += len(inbox.partial) + end - start
            self._add_oversized(inbox.partial)
            self._keep(inbox, b"")
            inbox.oversized = False
            batch.messages += 1
        else:
            end = start
        framing, data = self._framing, chunk.data
        if self._count:
            boundary, messages = framing.walk(data, end, stop)
            batch.messages += messages
        else:
            boundary = framing.reach(data, end, stop)
        chunk.used = boundary
        batch.size += boundary - end
        if boundary == stop:
            if inbox.partial:
                self._keep(inbox, b"")
        else:
            self._take_out(inbox, chunk, boundary, stop)
        added = batch.size - before
        if added:
            batch.reads += 1
        return added

    def reserve(self) -> None:
        """Allocate the memory that `space` may need next. Raises `MemoryError`."""
        if not self._spare:
            self._spare.append(_Chunk(self._chunk_bytes))

    def finish(self, inbox: Inbox) -> int:
        """After a FIN: complete the last message where the framing has a terminator. Returns the bytes added."""
        framing, partial = self._framing, inbox.partial
        if not partial or not framing.terminator or len(partial) >= framing.max_message_bytes:
            return 0
        self._add_oversized(partial)  # two pieces: there may be no memory for a copy
        self._add_oversized(framing.terminator)
        self._keep(inbox, b"")
        self.batch.reads += 1
        self.batch.messages += 1
        self.batch.size += len(partial) + 1
        return len(partial) + 1

    def drop(self, inbox: Inbox) -> int:
        """Drop the incomplete message of a producer. Returns its length in bytes."""
        dropped = len(inbox.partial)
        self._keep(inbox, b"")
        inbox.oversized = False
        return dropped

    # --- batches

    def take(self) -> Batch:
        """Returns the batch, to be committed, and begins the next one after it."""
        batch = self.batch
        self._seal()
        self._chunk = self._no_chunk
        self.batch = Batch(batch.end)
        return batch

    def release(self, batch: Batch) -> None:
        """Reuse the memory of `batch`, which is committed. Its pieces must not be used afterwards."""
        batch.pieces.clear()
        for chunk in batch.chunks:
            self.held -= self._chunk_bytes
            chunk.used = chunk.segment = 0
        self._spare += batch.chunks
        del self._spare[SPARE_CHUNKS + len(batch.chunks) :]
        batch.chunks.clear()
        self.held -= batch.oversized_bytes
        batch.oversized_bytes = 0

    # --- inside

    def _begin_chunk(self) -> bool:
        batch = self.batch
        if len(batch.chunks) >= self._batch_chunks:
            return False
        if self.held + self._chunk_bytes + self._quantum_bytes > self._budget:
            return False
        self._seal()
        self._chunk = self._spare.pop() if self._spare else _Chunk(self._chunk_bytes)
        batch.chunks.append(self._chunk)
        self.held += self._chunk_bytes
        return True

    def _seal(self) -> None:
        """Add the messages in the chunk to the pieces of the batch."""
        chunk = self._chunk
        if chunk.used > chunk.segment:
            self.batch.pieces.append(chunk.view[chunk.segment : chunk.used])
            chunk.segment = chunk.used

    def _add_oversized(self, piece: bytes | bytearray) -> None:
        self._seal()
        self.batch.pieces.append(piece)
        self.batch.oversized_bytes += len(piece)
        self.held += len(piece)

    def _keep(self, inbox: Inbox, partial: bytes | bytearray) -> None:
        self.held += len(partial) - len(inbox.partial)
        inbox.partial = partial

    def _take_out(self, inbox: Inbox, chunk: _Chunk, boundary: int, stop: int) -> None:
        """Copy the incomplete message that begins at `boundary`; its place in the chunk is overwritten next."""
        oversized = stop - boundary > self._small_bytes
        try:
            partial = bytearray(chunk.view[boundary:stop]) if oversized else bytes(chunk.view[boundary:stop])
        except MemoryError:
            raise NoMemoryError from None
        self._keep(inbox, partial)
        inbox.oversized = oversized
        inbox.missing = self._framing.missing(chunk.data, boundary, stop)

    def _complete(self, inbox: Inbox, start: int, stop: int) -> int | None:
        """The place in the chunk where the oversized message ends; None if all bytes belong to it and it goes on."""
        chunk, framing = self._chunk, self._framing
        partial = cast("bytearray", inbox.partial)
        if framing.terminator:
            end = chunk.data.find(framing.terminator, start, stop) + 1 or None
        else:
            end = start + inbox.missing if inbox.missing <= stop - start else None
        if end is not None:
            if len(partial) + end - start > framing.max_message_bytes:
                raise framing.too_long(f"a message of {len(partial) + end - start} bytes")
            return end
        try:
            partial += chunk.view[start:stop]
        except MemoryError:
            raise NoMemoryError from None
        inbox.partial = partial
        self.held += stop - start
        inbox.missing -= stop - start
        if framing.terminator and len(partial) >= framing.max_message_bytes:
            raise framing.too_long(f"a message of {len(partial)} bytes or more without its terminator")
        return None
