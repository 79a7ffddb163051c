"""The unacknowledged messages of a producer, with their receipts. Pure.

Positions count bytes from the first one that this outbox was ever given; `base` makes them offsets in the
producer's stream, once the collator has said how much of that there was before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from tailsrv_client.errors import ProducerDiverged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tailsrv_client.protocol.session import Acked


CHUNK_BYTES: Final = 1 << 18
"""Chunks in memory are joined up to this size."""


class Acknowledgeable(Protocol):
    """A future that an acknowledgement completes: a `Receipt` or an `asyncio.Future`."""

    def done(self) -> bool:
        """Whether it no longer waits."""

    def set_result(self, offset: int | None, /) -> None:
        """The message is committed at `offset` of the file; None: the offset is unknown."""

    def set_exception(self, error: Exception, /) -> None:
        """It will not be."""


class Store(Protocol):
    """Where the bytes are kept."""

    start: int
    end: int
    base: int | None

    def append(self, data: bytes) -> None:
        """Append `data`."""

    def read(self, position: int, limit: int) -> bytes | memoryview:
        """Up to `limit` bytes from `position`."""

    def discard(self, position: int) -> None:
        """What lies before `position` is no longer needed."""

    def anchor(self, base: int) -> None:
        """Keep `base`; durable when the next `tidy` returns."""

    def tidy(self) -> None:
        """See `Source`."""


class Memory:
    """A store in memory.

    What is read becomes a chunk, and neighbouring chunks become one as in a binary counter: no chunk but the last few
    is shorter than half of `CHUNK_BYTES`, so a backlog of single messages is found and sent again in few steps, and
    each byte is copied as many times as a small message has to double to fill a chunk.
    """

    def __init__(self) -> None:
        self.start: int = 0
        self.end: int = 0
        self.base: int | None = None
        self._chunks: list[bytes] = []
        self._starts: list[int] = []
        """Where each chunk begins."""
        self._joined = 0
        self._pieces: list[bytes] = []

    def append(self, data: bytes) -> None:
        """See `Store`. Messages are joined when they are read: once for many."""
        self._pieces.append(data)
        self.end += len(data)

    def read(self, position: int, limit: int) -> memoryview:
        """See `Store`. Takes the logarithm of what is held, not more the further back it is."""
        if position >= self._joined and self._pieces:
            self._join()
        number = bisect_right(self._starts, position) - 1
        if number < 0:
            return memoryview(b"")
        begin = position - self._starts[number]
        return memoryview(self._chunks[number])[begin : begin + limit]

    def _join(self) -> None:
        chunk, start = b"".join(self._pieces), self._joined
        while self._chunks and len(self._chunks[-1]) <= len(chunk) <= CHUNK_BYTES // 2:
            chunk, start = self._chunks.pop() + chunk, self._starts.pop()
        self._chunks.append(chunk)
        self._starts.append(start)
        self._joined = self.end
        self._pieces.clear()

    def discard(self, position: int) -> None:
        """See `Store`."""
        self.start = position
        gone = bisect_right(self._starts, position) - 1
        if gone >= 0 and self._starts[gone] + len(self._chunks[gone]) <= position:
            gone += 1
        if gone > 0:
            del self._chunks[:gone], self._starts[:gone]

    def anchor(self, base: int) -> None:
        """See `Store`."""
        self.base = base

    def tidy(self) -> None:
        """See `Source`: memory needs none."""


class Outbox:
    """A `Source` of messages, with the receipt of each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[tuple[int, int, Acknowledgeable]] = deque()

    # --- as a Source

    @property
    def start(self) -> int:
        """See `Source`."""
        return self._store.start + (self._store.base or 0)

    @property
    def end(self) -> int:
        """See `Source`."""
        return self._store.end + (self._store.base or 0)

    def has_message(self, position: int) -> bool:
        """See `Source`."""
        return position < self.end

    @property
    def anchored(self) -> bool:
        """See `Source`."""
        return self._store.base is not None

    def anchor(self, acked: int) -> None:
        """See `Source`."""
        self._store.anchor(acked - self._store.start)

    def read(self, position: int, limit: int) -> bytes | memoryview:
        """See `Source`."""
        return self._store.read(position - (self._store.base or 0), limit)

    def discard(self, position: int) -> None:
        """See `Source`."""
        self._store.discard(position - (self._store.base or 0))

    def tidy(self) -> None:
        """See `Source`."""
        self._store.tidy()

    # --- for the producer

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes that are not acknowledged."""
        return self._store.end - self._store.start

    def put(self, message: bytes, waiting: Acknowledgeable | None) -> None:
        """Append one whole message, or several without a receipt. Raises `OSError` if the store cannot keep it."""
        self._store.append(message)
        if waiting is not None:
            self._waiting.append((self._store.end, len(message), waiting))

    def announce(self, sizes: Iterable[tuple[int, Acknowledgeable | None]]) -> None:
        """Note sizes and receipts of the messages that another thread appends to the store next."""
        end = self._store.end
        for size, waiting in sizes:
            end += size
            if waiting is not None:
                self._waiting.append((end, size, waiting))

    def withdraw(self, waiting: Sequence[Acknowledgeable]) -> None:
        """Those that were announced last could not be appended."""
        for one in reversed(waiting):
            if self._waiting and self._waiting[-1][2] is one:  # unless `fail` was called meanwhile
                self._waiting.pop()

    def acknowledge(self, acked: Acked) -> None:
        """Complete the receipts of acknowledged messages. Raises `ProducerDiverged` for an ACKED within a message."""
        base = self._store.base or 0
        end, shift = acked.end - base, acked.at - acked.end + base
        waiting = self._waiting
        while waiting and waiting[0][0] <= end:
            message_end, size, receipt = waiting.popleft()
            if not receipt.done():
                # Without `exact` the bytes may be at several places: only the last end is known.
                receipt.set_result(shift + message_end - size if acked.exact or message_end == end else None)
        if waiting and waiting[0][0] - waiting[0][1] < end:
            raise ProducerDiverged(
                f"the collator acknowledges {acked.end} bytes, an end within a message: another producer uses this name"
            )
        self.discard(acked.end)

    def fail(self, error: Exception) -> None:
        """Nothing more will be acknowledged."""
        for _, _, receipt in self._waiting:
            if not receipt.done():
                receipt.set_exception(error)
        self._waiting.clear()
