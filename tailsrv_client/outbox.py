"""What a producer has been given and the collator has not acknowledged yet, and who waits to hear of it. Pure.

Positions count bytes from the first one that this outbox was ever given; `base` makes them offsets in the
producer's stream, once the collator has said how much of that there was before.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from tailsrv_client.errors import ProducerDiverged

if TYPE_CHECKING:
    from tailsrv_client.lane import Acked


class Waiting(Protocol):
    """Who waits for a message's acknowledgement: a `Receipt`, an `asyncio.Future`."""

    def done(self) -> bool:
        """Whether it no longer waits."""

    def set_result(self, offset: int | None, /) -> None:
        """The message is committed, and stands at `offset` of the file; None: nobody knows where."""

    def set_exception(self, error: Exception, /) -> None:
        """It will not be."""


class Store(Protocol):
    """Where the bytes are kept."""

    start: int
    end: int
    base: int | None

    def append(self, data: bytes) -> None:
        """Keep `data` behind the rest."""

    def read(self, position: int, limit: int) -> bytes | memoryview:
        """Up to `limit` bytes from `position`."""

    def discard(self, position: int) -> None:
        """What lies before `position` is no longer needed."""

    def anchor(self, base: int) -> None:
        """Keep `base`."""


class Memory:
    """A store in memory."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self.base: int | None = None
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._joined = 0
        self._pieces: list[bytes] = []

    def append(self, data: bytes) -> None:
        """See `Store`. Messages are joined when they are read: once for many."""
        self._pieces.append(data)
        self.end += len(data)

    def read(self, position: int, limit: int) -> memoryview:
        """See `Store`."""
        if position >= self._joined and self._pieces:
            self._chunks.append((self._joined, b"".join(self._pieces)))
            self._joined = self.end
            self._pieces.clear()
        for start, chunk in reversed(self._chunks):
            if start <= position:
                return memoryview(chunk)[position - start : position - start + limit]
        return memoryview(b"")

    def discard(self, position: int) -> None:
        """See `Store`."""
        self.start = position
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= position:
            self._chunks.popleft()

    def anchor(self, base: int) -> None:
        """See `Store`."""
        self.base = base


class Outbox:
    """A `Source` of messages, with who waits for each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[tuple[int, int, Waiting]] = deque()

    # --- as a Source

    @property
    def start(self) -> int:
        """See `Source`."""
        return self._store.start + (self._store.base or 0)

    @property
    def end(self) -> int:
        """See `Source`."""
        return self._store.end + (self._store.base or 0)

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

    # --- for the producer

    @property
    def held(self) -> int:
        """Bytes that are not acknowledged."""
        return self._store.end - self._store.start

    def put(self, message: bytes, waiting: Waiting | None) -> None:
        """Take one whole message (or several, where nobody waits). Raises `OSError` where it can't be kept."""
        self._store.append(message)
        if waiting is not None:
            self._waiting.append((self._store.end, len(message), waiting))

    def settle(self, acked: Acked) -> None:
        """Tell those who wait for what is acknowledged. Raises `ProducerDiverged` for a part of a message."""
        base = self._store.base or 0
        end, shift = acked.end - base, acked.at - acked.end + base
        waiting = self._waiting
        while waiting and waiting[0][0] <= end:
            behind, size, who = waiting.popleft()
            if not who.done():
                # Where the stretch may stand in several places, only the end of its last message is known.
                who.set_result(shift + behind - size if acked.exact or behind == end else None)
        if waiting and waiting[0][0] - waiting[0][1] < end:
            raise ProducerDiverged(
                f"the collator has {acked.end} bytes, which ends within a message: another producer uses this name"
            )
        self.discard(acked.end)

    def fail(self, error: Exception) -> None:
        """Nothing more will be acknowledged."""
        for _, _, who in self._waiting:
            if not who.done():
                who.set_exception(error)
        self._waiting.clear()
