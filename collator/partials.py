"""Incomplete messages, in the order of their progress: the first is the one to drop when room is needed.

A message makes progress when it grows by `PROGRESS_BYTES`, or when it is completed and the next one begins. A byte now
and then is no progress: a connection that holds memory that way is closed before a producer that really sends.

Each producer is in one of two dicts, ordered by progress: noting progress moves an entry to the end, in constant time.
`_excused` holds producers that would have made progress if there had been room to read from them; they are closed last.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collator.batch_builder import Inbox

PROGRESS_BYTES: Final = 1 << 12
"""Growth of an incomplete message in bytes that counts as progress."""


class Holder(Protocol):
    """A producer that may hold an incomplete message."""

    inbox: Inbox


H = TypeVar("H", bound=Holder)


class Partials(Generic[H]):
    """The producers with an incomplete message."""

    def __init__(self) -> None:
        self._sending: dict[H, float] = {}
        self._excused: dict[H, float] = {}

    def note(self, producer: H, *, completed: bool) -> None:
        """Bytes of `producer` have arrived; `completed`: they completed a message."""
        inbox = producer.inbox
        size = len(inbox.partial)
        if not size:
            if inbox.noted:
                self.forget(producer)
        elif completed or not inbox.noted or size - inbox.noted >= PROGRESS_BYTES:
            if inbox.noted:
                self.forget(producer)
            self._sending[producer] = time.monotonic()
            inbox.noted = size

    def excuse(self, producer: H, waiting: int) -> None:
        """There is no room to read from `producer`, which has `waiting` bytes in the kernel."""
        if waiting >= PROGRESS_BYTES and producer in self._sending:
            self._excused[producer] = self._sending.pop(producer)

    def forget(self, producer: H) -> None:
        """`producer` has no incomplete message any more."""
        if producer.inbox.noted:
            producer.inbox.noted = 0
            self._sending.pop(producer, None)
            self._excused.pop(producer, None)

    def oldest(self) -> tuple[H, float] | None:
        """The producer to close first, and the time (monotonic clock) of its last progress."""
        for producers in (self._sending, self._excused):
            for entry in producers.items():
                return entry
        return None
