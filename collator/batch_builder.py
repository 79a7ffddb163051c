"""Many producers' bytes in; batches of whole messages out.

Bytes are received where they will be written from. A batch is one chunk of memory (or a few): each producer's bytes go
behind the last whole message of the one before, its incomplete tail is taken out again, and the next producer's bytes
overwrite it. So a batch is one contiguous slice, and a message costs a slice of one recv and one writev.

A tail that grows beyond `SMALL_BYTES` stays apart in memory of its own, is searched only where it is new, and becomes a
piece of the batch when it is whole: a large message in small parts costs no more than a copy.

Knows no sockets, files or clocks. All that it holds is counted, and there is room for nothing more than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tailsrv_formats.framing import Framing

CHUNK_BYTES: Final = 1 << 20
"""What a chunk holds: it should fit the processor's cache between recv and writev."""

RECEIVE_BYTES: Final = 1 << 18
"""What one producer may deliver in its turn."""

SMALL_BYTES: Final = 1 << 14
"""A tail up to this size is cheaper copied than kept apart."""

BATCH_CHUNKS: Final = 16
"""How far a batch grows while the one before it is being synced."""

SPARE_CHUNKS: Final = 2
"""Empty chunks that are kept, besides as many as the last batch had: fresh memory costs more than a copy."""

Piece = bytes | bytearray | memoryview


class NoMemoryError(Exception):
    """There is no memory for a producer's incomplete message: what is left of that message must be dropped."""


class Inbox:
    """What one producer has sent that is no whole message yet."""

    __slots__ = ("missing", "noted", "oversized", "partial")

    def __init__(self) -> None:
        self.partial: bytes | bytearray = b""
        self.oversized = False
        self.missing = 0
        """Of a large message: how many bytes it lacks at least."""
        self.noted = 0
        """The bytes of `partial` when it last made progress worth noting (ingress.py); 0 while there is no partial."""


class Batch:
    """Whole messages that are committed together."""

    __slots__ = ("chunks", "messages", "oversized_bytes", "pieces", "reads", "runs", "size", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Where in the file it will stand."""
        self.size = 0
        """Its bytes."""
        self.messages = 0
        self.reads = 0
        """Deliveries that it is made of."""
        self.pieces: list[Piece] = []
        """Its bytes in order, once it is taken."""
        self.chunks: list[_Chunk] = []
        self.oversized_bytes = 0
        """Bytes of pieces that are not in chunks."""
        self.runs: dict[object, list[int]] = {}
        """For whoever contributed and wants to know: its own note of what stands where."""

    @property
    def end(self) -> int:
        """The offset in the file behind its last byte."""
        return self.start + self.size


class _Chunk:
    __slots__ = ("data", "segment", "used", "view")

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.used = 0
        self.segment = 0  # where what is not yet a piece of the batch begins


class BatchBuilder:
    """Gathers one batch at a time.

    A turn: ``space(inbox)``, receive into it, ``received(inbox, n)``. Nothing else may come between.
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
        """`start`: where the first batch will stand. `batch_chunks`: how many chunks a batch may fill.

        `count`: whether messages are counted where the framing does not have to visit them anyway.
        """
        self._framing = framing
        self._budget = buffer_bytes
        self._count = count or not framing.terminator
        self._chunk_bytes = min(CHUNK_BYTES, buffer_bytes // 4)
        self._receive_bytes = min(RECEIVE_BYTES, self._chunk_bytes // 2)
        self._least_bytes = self._receive_bytes // 4
        self._small_bytes = min(SMALL_BYTES, self._receive_bytes // 4)
        self._batch_chunks = batch_chunks
        self._chunk: _Chunk | None = None
        self._spare: list[_Chunk] = []
        self._at = 0  # where in the chunk the bytes to be received begin
        self.batch = Batch(start)
        self.held = 0
        """Bytes of memory that hold what is not committed yet."""

    # --- a producer's turn

    def space(self, inbox: Inbox) -> memoryview | None:
        """Where this producer's next bytes go; None when there is no room before a commit.

        Raises `MemoryError`, and then nothing has changed: see `reserve`.
        """
        if self.held + self._receive_bytes > self._budget:
            return None
        chunk = self._chunk
        front = 0 if inbox.oversized else len(inbox.partial)
        if chunk is None or self._chunk_bytes - chunk.used - front < self._least_bytes:
            chunk = self._next_chunk()
            if chunk is None:
                return None
        used = chunk.used
        self._at = at = used + front
        if front:
            chunk.data[used:at] = inbox.partial
        return chunk.view[at : at + self._receive_bytes]

    def received(self, inbox: Inbox, count: int) -> int:
        """Take in the `count` bytes that are now in the space; the bytes of whole messages that this added.

        Raises `FramingError` when what follows these messages can't be one, and `NoMemoryError` when there is no memory
        for it; the messages are in the batch nevertheless.
        """
        chunk, batch = self._chunk, self.batch
        assert chunk is not None  # noqa: S101 - for the type checker: space() has seen to it
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
        """Have the memory ready that `space` may need next. Raises `MemoryError`."""
        if not self._spare:
            self._spare.append(_Chunk(self._chunk_bytes))

    def finish(self, inbox: Inbox) -> int:
        """The producer ended cleanly: complete its last message where the framing can. The bytes that this added."""
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
        """Forget a producer's incomplete message; its bytes."""
        dropped = len(inbox.partial)
        self._keep(inbox, b"")
        inbox.oversized = False
        return dropped

    # --- batches

    def take(self) -> Batch:
        """The batch as far as it is gathered, to be committed; another one begins behind it."""
        batch = self.batch
        self._seal()
        self._chunk = None
        self.batch = Batch(batch.end)
        return batch

    def release(self, batch: Batch) -> None:
        """`batch` is committed: its memory is free. Its pieces must not be used any more."""
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

    def _next_chunk(self) -> _Chunk | None:
        batch = self.batch
        if len(batch.chunks) >= self._batch_chunks:
            return None
        if self.held + self._chunk_bytes + self._receive_bytes > self._budget:
            return None
        self._seal()
        self._chunk = chunk = self._spare.pop() if self._spare else _Chunk(self._chunk_bytes)
        batch.chunks.append(chunk)
        self.held += self._chunk_bytes
        return chunk

    def _seal(self) -> None:
        """Make what the chunk has gathered a piece of the batch."""
        chunk = self._chunk
        if chunk is not None and chunk.used > chunk.segment:
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
        """Keep the incomplete message that begins at `boundary`; what it leaves behind may be overwritten."""
        large = stop - boundary > self._small_bytes
        try:
            partial = bytearray(chunk.view[boundary:stop]) if large else bytes(chunk.view[boundary:stop])
        except MemoryError:
            raise NoMemoryError from None
        self._keep(inbox, partial)
        inbox.oversized = large
        inbox.missing = self._framing.missing(chunk.data, boundary, stop)

    def _complete(self, inbox: Inbox, start: int, stop: int) -> int | None:
        """Where in the chunk the large message ends; None when it goes on, and then it has taken in all bytes."""
        chunk, partial, framing = self._chunk, inbox.partial, self._framing
        assert chunk is not None  # noqa: S101 - for the type checker
        assert isinstance(partial, bytearray)  # noqa: S101 - the same: large ones are
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
